page = await sdk.volumes.list(search="training")
async for vol in page:
  print(f"{vol['slug']} {vol['used']} {vol['capacity']}")

vol = await sdk.volumes.get("training-cache")
