// What is exported is read again, the terminal chat's exports too.
import './fake_browser.mjs';
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Thread } from '../../afmoe_mlx/server/page/static/thread.js';
import { asMarkdown, asObject, fileName, fromText } from '../../afmoe_mlx/server/page/static/transfer.js';

const TERMINAL = {
  model: 'trinity-mini',
  settings: { temperature: 0.2, max_tokens: 100, stop: ['x'], logit_bias: { 1: 2 } },
  messages: [
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'Why is the   sky blue?' },
    {
      role: 'assistant',
      content: '<think>\nLight.\n</think>\n\nRayleigh.',
      tool_calls: [{ id: 'c1', type: 'function', function: { name: 'look', arguments: '{"at": "sky"}' } }],
    },
    { role: 'tool', content: 'It is blue.', tool_call_id: 'c1', name: 'look' },
    { role: 'assistant', content: 'As I', stopped: true },
  ],
};

const plain = ({ role, content, reasoning, calls, call, name, state }) => ({
  role,
  content,
  reasoning,
  calls,
  call,
  name,
  state,
});

test('the terminal chat’s export is read', () => {
  const [{ conversation, messages }] = fromText(JSON.stringify(TERMINAL), 'sky.json');
  assert.deepEqual(conversation.settings, { temperature: 0.2, max_tokens: 100, system: 'Be brief.' });
  assert.equal(conversation.title, 'Why is the sky blue?');
  const calls = [{ id: 'c1', name: 'look', arguments: '{"at": "sky"}' }];
  assert.deepEqual(messages.map(plain), [
    plain({ role: 'user', content: 'Why is the   sky blue?' }),
    plain({ role: 'assistant', content: 'Rayleigh.', reasoning: 'Light.', calls, state: 'done' }),
    plain({ role: 'tool', content: 'It is blue.', call: 'c1', name: 'look' }),
    plain({ role: 'assistant', content: 'As I', state: 'stopped' }),
  ]);
  assert.equal(new Thread(messages).path(conversation.leaf).length, 4);
});

test('an export is read as what it was', () => {
  const [{ conversation, messages }] = fromText(JSON.stringify(TERMINAL), 'sky.json');
  messages.at(-1).state = 'done';
  const text = JSON.stringify([asObject(conversation, messages, 'm')]);
  const [again] = fromText(text, 'all.json');
  assert.deepEqual(again.messages.map(plain), messages.map(plain));
  assert.deepEqual(again.conversation.settings, conversation.settings);
});

test('a file that is none is told of, by its name', () => {
  for (const text of [
    '',
    '{}',
    '[1]',
    '{"messages": [{"role": "owner", "content": "x"}]}',
    '{"messages": []}',
    '{"messages": [{"role": "user", "content": 1}]}',
    '{"messages": [null]}',
  ]) {
    assert.throws(() => fromText(text, 'a.json'), /a\.json/, text);
  }
});

test('Markdown has a heading for each message, and folds reasoning', () => {
  const [{ conversation, messages }] = fromText(JSON.stringify(TERMINAL), 'sky.json');
  const text = asMarkdown(conversation, messages, 'trinity-mini');
  assert.deepEqual(text.match(/^#+ .*/gm), [
    '# Why is the sky blue?',
    '## System prompt',
    '## User',
    '## Assistant',
    '## Result of look',
    '## Assistant',
  ]);
  assert.match(text, /<details><summary>Reasoning<\/summary>\n\nLight\.\n\n<\/details>\n\nRayleigh\./);
  assert.match(text, /Call of look:\n\n```json\n\{"at": "sky"\}\n```/);
});

test('a title becomes a file’s name, whatever is in it', () => {
  assert.equal(fileName('../Über: “מה?”', 'md'), 'Über-מה.md');
  assert.equal(fileName('…', 'json'), 'conversation.json');
});
