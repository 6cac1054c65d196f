page = sdk.volumes.list(search="training")
for info in page.items:
  print(f"{info['slug']} {info['used']} of {info['capacity']}")

latest = sdk.volumes.get("training-cache")
