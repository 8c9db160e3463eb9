// Messages as a tree, and the request that a path through it becomes.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fenced, requestFor, Thread } from '../../afmoe_mlx/server/page/static/thread.js';

let time = 0;
const message = (id, parent, role, more = {}) => ({
  id,
  parent,
  role,
  content: `${id}.`,
  conversation: 'c',
  created: time++,
  ...more,
});

const THREAD = new Thread([
  message('a', null, 'user'),
  message('b', 'a', 'assistant'),
  message('c', 'a', 'assistant'),
  message('d', 'c', 'user'),
  message('e', 'c', 'user'),
  message('f', 'e', 'assistant'),
]);

test('a path leads from the first message to the leaf', () => {
  const ids = (leaf) => THREAD.path(leaf).map(({ id }) => id);
  assert.deepEqual(ids('f'), ['a', 'c', 'e', 'f']);
  assert.deepEqual(ids('b'), ['a', 'b']);
  assert.deepEqual(ids(null), []);
});

test('versions have one parent, and each leads to its newest leaf', () => {
  const ids = (id) => THREAD.versions(THREAD.get(id)).map((one) => one.id);
  assert.deepEqual(ids('c'), ['b', 'c']);
  assert.deepEqual(ids('d'), ['d', 'e']);
  assert.equal(THREAD.newest('c'), 'f');
  assert.equal(THREAD.newest('b'), 'b');
});

test('a request has what was said, with the system prompt first and files before their message', () => {
  const files = [{ name: 'a b.py', text: '```x```' }];
  const path = [
    message('q', null, 'user', { files }),
    message('r', 'q', 'assistant', { reasoning: 'Hm.', calls: [{ id: 'i', name: 'f', arguments: '{}' }] }),
    message('s', 'r', 'tool', { call: 'i', name: 'f' }),
    message('t', 's', 'assistant', { content: '' }),
    message('u', 't', 'user'),
  ];
  const { messages, ...options } = requestFor(path, {
    system: 'Be kind.',
    temperature: 0,
    schema: '{"type":"object"}',
  });
  assert.deepEqual(messages, [
    { role: 'system', content: 'Be kind.' },
    { role: 'user', content: 'File a b.py:\n````py\n```x```\n````\n\nq.' },
    {
      role: 'assistant',
      content: 'r.',
      reasoning_content: 'Hm.',
      tool_calls: [{ id: 'i', type: 'function', function: { name: 'f', arguments: '{}' } }],
    },
    { role: 'tool', content: 's.', tool_call_id: 'i', name: 'f' },
    { role: 'user', content: 'u.' },
  ]);
  const response_format = { type: 'json_schema', json_schema: { name: 'answer', schema: { type: 'object' } } };
  assert.deepEqual(options, { temperature: 0, response_format });
});

test('a path that ends with an answer asks for its rest', () => {
  assert.equal(requestFor(THREAD.path('f'), {}).continue_final_message, true);
  assert.equal(requestFor(THREAD.path('e'), {}).continue_final_message, undefined);
});

test('fences are longer than any in their text', () => {
  assert.equal(fenced('a'), '```\na\n```');
  assert.equal(fenced('````\n', 'md'), '`````md\n````\n`````');
});
