// Does what a server asks: each request names a function of a module; both ways a line of JSON, then bytes.

const ROOT = new URL("../", import.meta.url);

function split(buffer) {
  const bytes = new Uint8Array(buffer);
  const end = bytes.indexOf(10);
  return [JSON.parse(new TextDecoder().decode(bytes.subarray(0, end))), bytes.slice(end + 1)];
}

async function answer(values, payload = new Uint8Array()) {
  const bytes = new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength);
  await fetch(new URL("answer", ROOT), { method: "POST", body: new Blob([`${JSON.stringify(values)}\n`, bytes]) });
}

for (;;) {
  const request = await fetch(new URL("work", ROOT));
  if (request.status === 204) continue; // nothing to do yet
  if (!request.ok) break;
  const [{ module, name, values }, payload] = split(await request.arrayBuffer());
  try {
    const called = await import(new URL(module, ROOT).href);
    const { payload: bytes, ...found } = (await called[name](values, payload)) ?? {};
    await answer({ value: found }, bytes);
  } catch (error) {
    await answer({ error: `${error?.name ?? "Error"}: ${error?.message ?? error}` });
  }
}
