await client.snapshots.delete("my-toolchain-snapshot");
