// The server's stream becomes pieces however it is cut; a key is asked for once, and is in no address.
import './fake_browser.mjs';
import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { Server, ServerError } from '../../afmoe_mlx/server/page/static/api.js';

const CHUNKS = [
  { choices: [{ delta: { role: 'assistant', content: '' } }] },
  { choices: [{ delta: {} }], prompt_progress: { total: 9, cache: 2, processed: 5, time_ms: 1 } },
  { choices: [{ delta: { reasoning_content: 'Hm.' } }] },
  { choices: [{ delta: { content: 'Grüße, שלום 😀\n\ndata: x' } }] },
  { choices: [{ delta: { tool_calls: [{ index: 0, id: 'c', function: { name: 'f', arguments: '' } }] } }] },
  { choices: [{ delta: { tool_calls: [{ index: 0, function: { arguments: '{}' } }] } }] },
  { choices: [{ delta: {}, finish_reason: 'length', violation: 'short' }] },
  {
    choices: [],
    timings: { prompt_ms: 500, predicted_ms: 250 },
    usage: {
      prompt_tokens: 9,
      completion_tokens: 4,
      prompt_tokens_details: { cached_tokens: 2 },
      completion_tokens_details: { reasoning_tokens: 1 },
    },
  },
];
const EVENTS = [...CHUNKS.map((chunk) => JSON.stringify(chunk)), '[DONE]'].map((data) => `data: ${data}\n\n`);
const PIECES = [
  { progress: CHUNKS[1].prompt_progress },
  { reasoning: 'Hm.' },
  { content: 'Grüße, שלום 😀\n\ndata: x' },
  { call: { index: 0, id: 'c', name: 'f', arguments: '' } },
  { call: { index: 0, id: undefined, arguments: '{}' } },
  { finish: 'length', violation: 'short' },
  { usage: { prompt: 9, cached: 2, tokens: 4, reasoning: 1, first: 0.5, seconds: 0.25 } },
];
let asked = [];

/** Answer every request by a function of it. */
function serve(respond) {
  asked = [];
  globalThis.fetch = async (path, options) => {
    asked.push({ path, ...options });
    return respond(path, options);
  };
}

const streamOf = (bytes, size) =>
  new ReadableStream({
    start(controller) {
      for (let i = 0; i < bytes.length; i += size) controller.enqueue(bytes.slice(i, i + size));
      controller.close();
    },
  });

async function piecesOf(server, signal = new AbortController().signal) {
  const found = [];
  for await (const piece of server.answer({ messages: [] }, signal)) found.push(piece);
  return found;
}

const answered = (text, size = 1e6) => new Response(streamOf(new TextEncoder().encode(text), size));
const refused = (status, error, headers) => new Response(JSON.stringify({ error }), { status, headers });

beforeEach(() => sessionStorage.removeItem('key'));

test('a stream is read however it is cut', async () => {
  for (const size of [1, 2, 3, 7, 100, 1e6]) {
    serve(() => answered(`: alive\n\n${EVENTS.join('')}`, size));
    assert.deepEqual(await piecesOf(new Server()), PIECES);
  }
});

test('a stream without its end is an error that passes', async () => {
  for (let count = 0; count < EVENTS.length; count++) {
    serve(() => answered(EVENTS.slice(0, count).join('')));
    const failed = piecesOf(new Server());
    await assert.rejects(failed, (error) => error instanceof ServerError && error.status === 0 && error.isPassing);
  }
});

test('an error in a stream is told', async () => {
  const error = { message: 'the server is shutting down', code: 'unavailable' };
  serve(() => answered(`${EVENTS[0]}data: ${JSON.stringify({ error })}\n\ndata: [DONE]\n\n`));
  await assert.rejects(piecesOf(new Server()), (told) => told.message === error.message && told.isPassing);
});

test('a refusal has the server’s words, and when to ask again', async () => {
  serve(() => refused(429, { message: 'too many wait', code: 'queue_full' }, { 'retry-after': '3' }));
  await assert.rejects(
    piecesOf(new Server()),
    (e) => e.isPassing && e.retryAfter === 3 && e.message === 'too many wait',
  );
  serve(() => refused(400, { message: 'temperature: no', code: 'invalid_value' }));
  await assert.rejects(piecesOf(new Server()), (error) => !error.isPassing);
});

test('a key is asked for once by all that need one, kept in the tab, and is in no address', async () => {
  serve((_, { headers }) =>
    headers.authorization === 'Bearer s3cret' ? answered(EVENTS.join('')) : refused(401, { message: 'no key' }),
  );
  const server = new Server();
  let asks = 0;
  server.onkey = async () => {
    asks += 1;
    return 's3cret';
  };
  await Promise.all([piecesOf(server), piecesOf(server)]);
  await piecesOf(new Server());
  assert.equal(asks, 1);
  assert.ok(asked.every(({ path }) => !path.includes('s3cret')));
});

test('without a key the refusal stands', async () => {
  serve(() => refused(401, { message: 'missing or wrong API key' }));
  await assert.rejects(piecesOf(new Server()), /missing or wrong API key/);
  assert.equal(asked.length, 1);
});

test('waiting for the server ends when it is back, or when nobody waits any more', async () => {
  let looks = 0;
  serve(() => {
    looks += 1;
    if (looks < 3) throw new TypeError('gone');
    return new Response('{}');
  });
  await new Server().back(new AbortController().signal);
  assert.equal(looks, 3);
  const controller = new AbortController();
  const waits = new Server().back(controller.signal, 60);
  controller.abort(new Error('stopped'));
  await assert.rejects(waits, /stopped/);
});
