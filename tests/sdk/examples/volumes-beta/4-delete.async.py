await sdk.volumes.delete("training-cache")
