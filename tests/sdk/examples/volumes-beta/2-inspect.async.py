page = await sdk.volumes.list(search="training")
async for info in page:
  print(f"{info['slug']} {info['used']} of {info['capacity']}")

latest = await sdk.volumes.get("training-cache")
