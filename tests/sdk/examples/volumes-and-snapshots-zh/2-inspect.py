page = sdk.volumes.list(search="training")
for vol in page.items:
  print(f"{vol['slug']} {vol['used']} {vol['capacity']}")

vol = sdk.volumes.get("training-cache")
