/** Markdown as it comes: what is not the last block of the text any more stays as it is. */

import { copy, iconButton, make } from './dom.js';
import DOMPurify from './vendor/dompurify.js';
import hljs from './vendor/highlight.js';
import MarkdownIt from './vendor/markdown-it.js';

/** @typedef {{html: string, nodes: Node[]}} Block */

const SANITIZED = {
  ALLOWED_TAGS:
    'a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong table tbody td th thead tr ul'.split(
      ' ',
    ),
  ALLOWED_ATTR: ['class', 'href', 'start', 'title'],
  ALLOWED_URI_REGEXP: /^https?:/i,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
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

/** A link in place of a picture: nothing is fetched. @type {import('markdown-it').RendererRule} */
function picture(tokens, index) {
  const { escapeHtml } = parser.utils;
  const { content } = tokens[index];
  return `<a href="${escapeHtml(String(tokens[index].attrGet('src')))}">${escapeHtml(content || 'picture')}</a>`;
}

/** A cell whose alignment is a class: styles in attributes are refused. @type {import('markdown-it').RendererRule} */
function cell(tokens, index, options, _, renderer) {
  const style = tokens[index].attrGet('style');
  if (style) tokens[index].attrs = [['class', String(style).replace('text-align:', 'align-')]];
  return renderer.renderToken(tokens, index, options);
}

/** An element that shows a text. */
export class MarkdownView {
  /** @type {Block[]} */ #blocks = [];
  #text = '';
  #stable = 0; // characters before the last block
  #kept = 0; // blocks in these
  /** @type {Record<string, any>} */ #references = {}; // link definitions in these

  /** @param {HTMLElement} element Which has nothing else in it. */
  constructor(element) {
    this.element = element;
  }

  /** Show a text, most often the one before and what has come. @param {string} given @param {boolean} isWhole */
  show(given, isWhole) {
    const text = given.replace(/\r\n?/g, '\n');
    if (!text.startsWith(this.#text.slice(0, this.#stable))) this.#stable = 0;
    if (!this.#stable) this.#begin();
    this.#text = text;
    this.#update(isWhole);
    const hasReferences = isWhole && Object.keys(this.#references).length > 0;
    if (hasReferences) {
      this.#stable = this.#kept = 0; // what they are of may have come before them
      this.#update(true);
    }
  }

  #begin() {
    this.#references = {};
    this.#kept = 0;
  }

  /** @param {boolean} isWhole */
  #update(isWhole) {
    const tail = this.#text.slice(this.#stable);
    const env = { references: { ...this.#references } };
    const parts = blocksOf(parser.parse(tail, env));
    const kept = this.#kept;
    parts.forEach((tokens, index) => {
      const isOpen = !isWhole && index === parts.length - 1;
      this.#put(kept + index, tokens, env, isOpen);
    });
    for (const { nodes } of this.#blocks.splice(kept + parts.length)) for (const node of nodes) remove(node);
    const [first] = parts.at(-1)?.[0].map ?? [0];
    const length = first ? tail.split('\n', first).join('\n').length + 1 : 0;
    if (isWhole) this.#references = env.references;
    else if (length) {
      const known = { references: this.#references };
      parser.parse(tail.slice(0, length), known);
      this.#references = known.references;
    }
    this.#stable += length;
    this.#kept += Math.max(parts.length - 1, 0);
  }

  /**
   * Show a block in its place.
   * @param {number} index
   * @param {import('markdown-it').Token[]} tokens
   * @param {any} env
   * @param {boolean} isOpen
   */
  #put(index, tokens, env, isOpen) {
    const isLong = isOpen && tokens[0].type === 'fence' && tokens[0].content.length > MOST_HIGHLIGHTED;
    const options = isLong ? { ...parser.options, highlight: null } : parser.options;
    const html = parser.renderer.render(tokens, options, env);
    const old = this.#blocks[index];
    if (old?.html === html) return;
    const fragment = /** @type {DocumentFragment} */ (/** @type {unknown} */ (DOMPurify.sanitize(html, SANITIZED)));
    decorate(fragment);
    if (old && replaceCode(old, fragment)) {
      old.html = html;
      return;
    }
    const nodes = [...fragment.childNodes];
    const next = this.#blocks.slice(index + 1).find((block) => block.nodes.length)?.nodes[0];
    this.element.insertBefore(fragment, old?.nodes[0] ?? next ?? null);
    for (const node of old?.nodes ?? []) remove(node);
    this.#blocks[index] = { html, nodes };
  }
}

/** @param {Node} node */
const remove = (node) => node.parentNode?.removeChild(node);

/** The tokens of each block of a document. @param {import('markdown-it').Token[]} tokens */
function blocksOf(tokens) {
  /** @type {import('markdown-it').Token[][]} */ const found = [];
  let depth = 0;
  for (const token of tokens) {
    if (depth === 0) found.push([]);
    found[found.length - 1].push(token);
    depth += token.nesting;
  }
  return found;
}

/**
 * Of a block of code change the code alone, so that where it is scrolled to stays.
 * @param {Block} old @param {DocumentFragment} fragment
 */
function replaceCode(old, fragment) {
  const [before, after] = [old.nodes[0], fragment.firstElementChild];
  if (!(before instanceof HTMLElement && after instanceof HTMLElement)) return false;
  if (![before, after].every((element) => element.matches('.code')) || fragment.childElementCount !== 1) return false;
  const [code, fresh] = [before, after].map((element) => element.querySelector('code'));
  if (!code || !fresh || code.className !== fresh.className) return false;
  code.replaceChildren(...fresh.childNodes);
  return true;
}

/** What markup cannot bring along. @param {DocumentFragment} fragment */
function decorate(fragment) {
  for (const link of fragment.querySelectorAll('a')) {
    link.target = '_blank';
    link.rel = 'noopener noreferrer nofollow';
  }
  for (const element of fragment.querySelectorAll('p, li, h1, h2, h3, h4, h5, h6, td, th, blockquote')) {
    element.setAttribute('dir', 'auto');
  }
  for (const pre of fragment.querySelectorAll('pre')) frameCode(pre);
  for (const table of fragment.querySelectorAll('table')) {
    const frame = make('div', { class: 'table', tabindex: 0, role: 'group', 'aria-label': 'Table' });
    table.replaceWith(frame);
    frame.append(table);
  }
}

/** Code in a frame that tells its language and lets it be copied. @param {HTMLPreElement} pre */
function frameCode(pre) {
  const code = pre.querySelector('code');
  const language = code?.className.replace('language-', '') ?? '';
  const frame = make('div', { class: 'code', dir: 'ltr' });
  const button = iconButton('copy', 'Copy code', () => copy(pre.textContent?.replace(/\n$/, '') ?? '', button));
  pre.replaceWith(frame);
  pre.setAttribute('tabindex', '0');
  pre.setAttribute('role', 'group');
  pre.setAttribute('aria-label', language ? `Code, ${language}` : 'Code');
  frame.append(make('div', { class: 'bar' }, make('span', {}, language), button), pre);
}
