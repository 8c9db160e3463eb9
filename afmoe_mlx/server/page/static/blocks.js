/** Markdown becomes HTML, a block at a time: what is not the last block of a growing text any more is not made again. */

import hljs from './vendor/highlight.js';
import MarkdownIt from './vendor/markdown-it.js';

/** @typedef {import('markdown-it').Token} Token */
/** @typedef {import('markdown-it').RendererRule} Rule */

// Characters of code that is highlighted anew with each of its tokens; more of it is once it is whole.
const MOST_HIGHLIGHTED = 10_000;

const parser = new MarkdownIt({ html: false, linkify: true, highlight });
parser.validateLink = (url) => /^https?:\/\//i.test(url);
parser.renderer.rules.image = picture;
parser.renderer.rules.th_open = parser.renderer.rules.td_open = cell;

/** @param {string} code @param {string} language */
function highlight(code, language) {
  if (!hljs.getLanguage(language)) return '';
  return hljs.highlight(code, { language, ignoreIllegals: true }).value;
}

/** A link in place of a picture: nothing is fetched. @type {Rule} */
function picture(tokens, index) {
  const { escapeHtml } = parser.utils;
  const { content } = tokens[index];
  return `<a href="${escapeHtml(String(tokens[index].attrGet('src')))}">${escapeHtml(content || 'picture')}</a>`;
}

/** A cell whose alignment is a class: styles in attributes are refused. @type {Rule} */
function cell(tokens, index, options, _, renderer) {
  const style = tokens[index].attrGet('style');
  if (style) tokens[index].attrs = [['class', String(style).replace('text-align:', 'align-')]];
  return renderer.renderToken(tokens, index, options);
}

/** The blocks of a text that grows. */
export class Blocks {
  #text = '';
  /** @type {string[]} HTML of the blocks that stay. */ #kept = [];
  #stable = 0; // characters of these
  /** @type {Record<string, any>} Link definitions in these. */ #references = {};

  /**
   * The HTML of each block, and how many of the first ones are those of the text before.
   * @param {string} given Most often the text before, and what has come.
   * @param {boolean} isWhole Whether nothing more comes.
   */
  update(given, isWhole) {
    const text = given.replace(/\r\n?/g, '\n');
    if (!text.startsWith(this.#text.slice(0, this.#stable))) this.#forget();
    this.#text = text;
    const made = this.#advance(isWhole);
    if (!isWhole || !Object.keys(made.references).length) return made;
    this.#forget(); // what a definition is of may have come before it
    this.#references = made.references;
    return this.#advance(true);
  }

  #forget() {
    this.#kept = [];
    this.#stable = 0;
    this.#references = {};
  }

  /** @param {boolean} isWhole */
  #advance(isWhole) {
    const tail = this.#text.slice(this.#stable);
    const env = { references: { ...this.#references } };
    const parts = blocksOf(parser.parse(tail, env));
    const htmls = parts.map((tokens, index) => render(tokens, env, !isWhole && index === parts.length - 1));
    const kept = this.#kept.length;
    const blocks = [...this.#kept, ...htmls];
    const settled = settledOf(parts, tail.split('\n').length - 1);
    const line = firstLine(parts[settled]);
    if (line) this.#keep(tail.split('\n', line).join('\n').length + 1, htmls.slice(0, settled));
    return { blocks, kept, references: env.references };
  }

  /** Keep the first characters of the tail as they are. @param {number} length @param {string[]} htmls */
  #keep(length, htmls) {
    const known = { references: this.#references };
    parser.parse(this.#text.slice(this.#stable, this.#stable + length), known); // its definitions are whole
    this.#references = known.references;
    this.#stable += length;
    this.#kept.push(...htmls);
  }
}

/** The tokens of each block of a document. @param {Token[]} tokens */
function blocksOf(tokens) {
  /** @type {Token[][]} */ const found = [];
  let depth = 0;
  for (const token of tokens) {
    if (depth === 0) found.push([]);
    found[found.length - 1].push(token);
    depth += token.nesting;
  }
  return found;
}

/** @param {Token[] | undefined} tokens Of a block. */
const firstLine = (tokens) => tokens?.[0].map?.[0] ?? 0;

/**
 * How many of the first blocks nothing that comes can change: not the last; nor the one before a line that is not over,
 * which may yet turn out to be of it, unless that has had its end.
 * @param {Token[][]} parts
 * @param {number} lastLine
 */
function settledOf(parts, lastLine) {
  const last = parts.length - 1;
  const isOpen = firstLine(parts[last]) === lastLine && parts[last - 1]?.[0].type !== 'fence';
  return Math.max(isOpen ? last - 1 : last, 0);
}

/** @param {Token[]} tokens @param {any} env @param {boolean} isOpen */
function render(tokens, env, isOpen) {
  const isLong = isOpen && tokens[0].type === 'fence' && tokens[0].content.length > MOST_HIGHLIGHTED;
  const options = isLong ? { ...parser.options, highlight: null } : parser.options;
  return parser.renderer.render(tokens, options, env);
}
