/** The server, asked by its own interface: what it serves, and answers as they come. */

/** @typedef {import('./types.js').Model} Model */
/** @typedef {import('./types.js').Piece} Piece */

const KEY = 'key';
const SHORTEST = 500; // milliseconds between two looks whether the server is back
const LONGEST = 5000;

/** What the server says in place of an answer. */
export class ServerError extends Error {
  /**
   * @param {number} status 0: nothing came, or not to its end.
   * @param {string} message
   * @param {{code?: string, retryAfter?: number}} [more]
   */
  constructor(status, message, more = {}) {
    super(message);
    this.status = status;
    this.code = more.code ?? '';
    this.retryAfter = more.retryAfter;
  }

  /** Whether the same may be asked again, later. */
  get isPassing() {
    return [0, 429, 502, 503, 504].includes(this.status) || ['unavailable', 'queue_full'].includes(this.code);
  }
}

export class Server {
  /** @type {Promise<string | null> | undefined} */ #asking;

  constructor() {
    /** Asks the user for a key; null if there is none. @type {() => Promise<string | null>} */
    this.onkey = async () => null;
    this.name = ''; // of the model, once it is known
  }

  /** What is served. @param {AbortSignal} [signal] @returns {Promise<Model>} */
  async model(signal) {
    const { data } = await (await this.#fetch('v1/models', { signal })).json();
    const [{ id: name, max_model_len: context, defaults = {} }] = data;
    this.name = name;
    return { name, context, defaults };
  }

  /** How many tokens a message has. @param {string} text @param {AbortSignal} signal @returns {Promise<number>} */
  async count(text, signal) {
    const body = JSON.stringify({ model: this.name, messages: [{ role: 'user', content: text }] });
    const response = await this.#fetch('v1/messages/count_tokens', { method: 'POST', body, signal });
    return (await response.json()).input_tokens;
  }

  /**
   * An answer, piece by piece. Throws a ServerError, or the signal's reason.
   * @param {Record<string, any>} body Of a chat completion.
   * @param {AbortSignal} signal
   * @returns {AsyncGenerator<Piece>}
   */
  async *answer(body, signal) {
    const asked = { ...body, stream: true, stream_options: { include_usage: true }, return_progress: true };
    const response = await this.#fetch('v1/chat/completions', { method: 'POST', body: JSON.stringify(asked), signal });
    for await (const data of events(response, signal)) {
      if (data === '[DONE]') return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw errorOf(chunk.error.code === 'unavailable' ? 503 : 500, chunk);
      yield* pieces(chunk);
    }
    throw new ServerError(0, 'the server went away in the midst of the answer');
  }

  /** Wait until the server answers. @param {AbortSignal} signal @param {number} [seconds] At least. */
  async back(signal, seconds = 0) {
    await pause(seconds * 1000, signal);
    for (let wait = SHORTEST; ; wait = Math.min(2 * wait, LONGEST)) {
      const response = await fetch('health', { signal, cache: 'no-store' }).catch(() => null);
      if (response?.ok) return;
      await pause(wait, signal);
    }
  }

  /**
   * @param {string} path
   * @param {{method?: string, body?: string, signal?: AbortSignal}} options
   */
  async #fetch(path, options) {
    for (;;) {
      /** @type {Record<string, string>} */ const headers = { 'content-type': 'application/json' };
      const key = sessionStorage.getItem(KEY);
      if (key) headers.authorization = `Bearer ${key}`;
      const request = { ...options, headers, cache: /** @type {const} */ ('no-store') };
      const response = await fetch(path, request).catch((error) => {
        options.signal?.throwIfAborted();
        throw new ServerError(0, `the server does not answer (${error.message})`);
      });
      if (response.ok) return response;
      if (response.status === 401 && (await this.#askForKey())) continue;
      const told = await response.json().catch(() => null);
      throw errorOf(response.status, told, Number(response.headers.get('retry-after')) || undefined);
    }
  }

  /** Once for all that need one. @returns {Promise<boolean>} */
  async #askForKey() {
    this.#asking ??= this.onkey();
    const key = await this.#asking;
    this.#asking = undefined;
    if (key !== null) sessionStorage.setItem(KEY, key);
    return key !== null;
  }
}

/** @param {number} status @param {any} told @param {number} [retryAfter] */
function errorOf(status, told, retryAfter) {
  const { message = `the server said ${status}`, code } = told?.error ?? {};
  return new ServerError(status, message, { code, retryAfter });
}

/** @param {any} chunk Of OpenAI's stream. @returns {Generator<Piece>} */
function* pieces({ choices, usage, timings, prompt_progress: progress }) {
  if (progress) yield { progress };
  for (const { delta, finish_reason: finish, violation } of choices) {
    if (delta.reasoning_content) yield { reasoning: delta.reasoning_content };
    if (delta.content) yield { content: delta.content };
    for (const { index, id, function: called } of delta.tool_calls ?? []) yield { call: { index, id, ...called } };
    if (finish) yield { finish, violation };
  }
  if (usage) {
    const { prompt_tokens: prompt, completion_tokens: tokens } = usage;
    const cached = usage.prompt_tokens_details.cached_tokens;
    const reasoning = usage.completion_tokens_details.reasoning_tokens;
    const times = timings && { first: timings.prompt_ms / 1000, seconds: timings.predicted_ms / 1000 };
    yield { usage: { prompt, cached, tokens, reasoning, ...times } };
  }
}

/** The data of server-sent events. @param {Response} response @param {AbortSignal} signal */
async function* events(response, signal) {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const found = (held + value).split('\n\n');
      held = found.pop() ?? '';
      for (const event of found) if (event.startsWith('data: ')) yield event.slice(6);
    }
  } catch {
    signal.throwIfAborted(); // else the connection broke, and the answer ends without its end
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** @param {number} milliseconds @param {AbortSignal} signal @returns {Promise<void>} */
function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason);
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener('abort', () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
