await client.volumes.delete("training-cache");
