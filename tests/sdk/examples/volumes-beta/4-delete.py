sdk.volumes.delete("training-cache")
