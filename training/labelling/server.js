// Requests to the server that sent this page. Its token is the last folder of the page's address.

const token = location.pathname.split("/").at(-2);

export class ServerError extends Error {
  constructor(message, content = {}) {
    super(message);
    this.content = content;
  }
}

export async function fetchRaw(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    throw new ServerError("the server does not answer: was `view` ended? Start it again");
  }
  if (response.ok) return response;
  const content = await response.json().catch(() => ({}));
  throw new ServerError(content.error ?? `the server answered ${response.status}`, content);
}

export async function getJson(path) {
  return (await fetchRaw(path)).json();
}

export async function postJson(path, content) {
  const headers = { "Content-Type": "application/json", "X-Fastseq-Token": token };
  const response = await fetchRaw(path, {
    method: "POST", headers, body: JSON.stringify(content),
  });
  return response.json();
}
