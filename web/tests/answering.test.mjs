// An answer that is broken off is gone on with, from what there was of it.
import './fake_browser.mjs';
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Answering } from '../../afmoe_mlx/server/page/static/answering.js';
import { ServerError } from '../../afmoe_mlx/server/page/static/api.js';

const QUESTION = { id: 'q', conversation: 'c', parent: null, role: 'user', content: 'Count.', created: 0 };
const USAGE = { prompt: 10, cached: 4, tokens: 2, reasoning: 0 };

/** Gives each of the lists of pieces in turn; an error in them is thrown. */
class FakeServer {
  asked = [];
  waits = [];

  constructor(...answers) {
    this.answers = answers;
  }

  async *answer(body, signal) {
    this.asked.push(structuredClone(body));
    for (const piece of this.answers.shift()) {
      signal.throwIfAborted();
      if (piece instanceof Error) throw piece;
      yield piece;
    }
  }

  async back(_, seconds) {
    this.waits.push(seconds);
  }
}

async function written(server, { settings = {}, message = {}, onChange = () => {} } = {}) {
  const answer = { id: 'a', conversation: 'c', parent: 'q', role: 'assistant', content: '', created: 1, ...message };
  const saved = [];
  const answering = new Answering(answer, [QUESTION], settings, {
    server,
    save: async (one) => saved.push(structuredClone(one)),
    changed: () => onChange(answering, answer),
    progress: () => {},
    say: () => {},
  });
  await answering.write();
  assert.deepEqual(saved.at(-1), answer);
  return answer;
}

const end = [{ finish: 'stop' }, { usage: USAGE }];

test('the server was away: what it had told stays, and the rest is asked for', async () => {
  const gone = new ServerError(0, 'gone');
  const server = new FakeServer(
    [{ progress: { total: 10, cache: 4, processed: 10 } }, { reasoning: 'Hm.' }, { content: 'One, ' }, gone],
    [new ServerError(503, 'not yet', { retryAfter: 7 })],
    [new ServerError(503, 'not yet')],
    [{ content: 'two.' }, { finish: 'stop' }, { usage: { prompt: 13, cached: 12, tokens: 2, reasoning: 0 } }],
  );
  const answer = await written(server);
  assert.deepEqual([answer.content, answer.reasoning, answer.state], ['One, two.', 'Hm.', 'done']);
  assert.deepEqual(server.waits, [0, 7, 2]);
  const [first, last] = [server.asked[0], server.asked.at(-1)];
  assert.equal(first.continue_final_message, undefined);
  assert.equal(last.continue_final_message, true);
  assert.deepEqual(last.messages.at(-1), { role: 'assistant', content: 'One, ', reasoning_content: 'Hm.' });
  const { prompt, cached, tokens, total, about } = answer.figures;
  assert.deepEqual([prompt, cached, tokens, total, about], [10, 4, 5, 15, undefined]);
});

test('calls and answers that a schema holds are begun anew', async () => {
  const call = { call: { index: 0, id: 'i', name: 'f', arguments: '{' } };
  const gone = new ServerError(0, 'gone');
  const called = await written(new FakeServer([{ content: 'So.' }, call, gone], [{ content: 'No.' }, ...end]));
  assert.deepEqual([called.content, called.calls], ['No.', undefined]);
  const server = new FakeServer([{ content: '{"a"' }, gone], [{ content: '{"a": 1}' }, ...end]);
  const held = await written(server, { settings: { schema: '{"type": "object"}' } });
  assert.equal(held.content, '{"a": 1}');
  assert.equal(server.asked[1].continue_final_message, undefined);
});

test('a refusal ends it with the server’s words', async () => {
  const answer = await written(new FakeServer([new ServerError(400, 'temperature: too hot')]));
  assert.deepEqual([answer.state, answer.trouble], ['failed', 'temperature: too hot']);
});

test('what the user stops is kept', async () => {
  const server = new FakeServer([{ content: 'One' }, { content: ' two' }, { content: ' three' }, ...end]);
  const onChange = (answering, { content }) => content === 'One two' && answering.stop();
  const answer = await written(server, { onChange });
  assert.deepEqual([answer.state, answer.content, answer.figures.about], ['stopped', 'One two', true]);
});

test('an answer at its limit, and one that its schema would not have', async () => {
  const answer = await written(
    new FakeServer([{ content: 'On' }, { finish: 'length', violation: 'no end' }, { usage: USAGE }]),
  );
  assert.equal(answer.state, 'full');
  assert.match(answer.trouble, /no end/);
  assert.deepEqual([answer.figures.prompt, answer.figures.tokens, answer.figures.total], [10, 2, 12]);
});
