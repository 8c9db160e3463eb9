// A text that grows becomes the same HTML as one that is there at once, and what was kept of it is not made again.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Blocks } from '../../afmoe_mlx/server/page/static/blocks.js';

const PIECES = [
  '# A title\n',
  'Some *text* and `code`',
  'more of it\n',
  '\n',
  '\n\n',
  '- an item\n',
  '  - one within\n',
  '    its rest\n',
  '1. first\n',
  '```python\nx = 1\n',
  '```\n',
  '~~~\n',
  '> said\n',
  '    indented\n',
  '| a | b |\n|--|-:|\n',
  '| 1 | 2 |\n',
  '---\n',
  '===\n',
  '[a link][one] and https://example.com/x\n',
  '[one]: https://example.com/one "The one"\n',
  '![seen](https://example.com/p.png)',
  '<b onclick="x">bold</b>\n',
  '<!-- a remark\n',
  '\t- tabbed\n',
  '\r\n',
  'שלום 😀\n',
  '```',
  '#',
  '-',
  '>',
  '1.',
  '    ',
];

/** Numbers that are the same each time. */
function* numbers(seed) {
  for (let state = seed; ; ) {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    yield state / 2 ** 31;
  }
}

function randomText(seed) {
  const draw = numbers(seed);
  const next = () => draw.next().value;
  return Array.from({ length: 2 + Math.floor(next() * 12) }, () => PIECES[Math.floor(next() * PIECES.length)]).join('');
}

const whole = (text) => new Blocks().update(text, true).blocks.join('');

test('a text that grows becomes what it is at once', () => {
  for (let seed = 1; seed <= 200; seed++) {
    const text = randomText(seed);
    const growing = new Blocks();
    for (let end = 0; end < text.length; end += 1 + (seed % 7)) growing.update(text.slice(0, end), false);
    assert.equal(growing.update(text, true).blocks.join(''), whole(text), JSON.stringify(text));
  }
});

test('blocks that are kept stay as they were', () => {
  for (let seed = 1; seed <= 60; seed++) {
    const text = randomText(seed);
    const growing = new Blocks();
    let before = [];
    for (let end = 1; end <= text.length; end++) {
      const { blocks, kept } = growing.update(text.slice(0, end), false);
      assert.deepEqual(blocks.slice(0, kept), before.slice(0, kept), JSON.stringify(text.slice(0, end)));
      assert.ok(kept >= before.length - 2 || kept === 0);
      before = blocks;
    }
  }
});

test('of a long text only its last blocks are made again', () => {
  const growing = new Blocks();
  const text = Array.from({ length: 300 }, (_, i) => `Paragraph ${i} with *something*.\n\n`).join('');
  growing.update(`${text}A`, false);
  for (const end of ['And', 'And so', 'And so on.']) assert.equal(growing.update(text + end, false).kept, 299);
});

test('a text that is another is shown from its beginning', () => {
  const growing = new Blocks();
  growing.update('One.\n\nTwo.\n\nThree.', false);
  assert.equal(growing.update('Four.\n\nTwo.', false).blocks.join(''), whole('Four.\n\nTwo.'));
});

test('no markup of the model becomes an element, and no address but of the web a link', () => {
  const bad =
    '<img src=x onerror=a()>\n\n[a](javascript:a()) [b](data:text/html,x) [c](vbscript:x) <form>\n\n<svg onload=x>';
  const html = whole(`${bad}\n\n![p](javascript:a())\n\n[d](file:///etc/passwd)\n\n\`\`\`"><img src=x>\ncode\n\`\`\``);
  assert.doesNotMatch(html, /<(img|form|svg|script|iframe)/i);
  assert.doesNotMatch(html, /href="(?!https?:)/i);
});
