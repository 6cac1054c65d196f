const page = await client.volumes.list({ search: "training" });
for (const vol of page.items) {
  console.log(vol.slug, vol.used, vol.capacity);
}

const vol = await client.volumes.get("training-cache");
