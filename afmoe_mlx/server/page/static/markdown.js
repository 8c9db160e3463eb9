/** A text in Markdown on the page, as it comes: elements of what is not its last block stay as they are. */

import { Blocks } from './blocks.js';
import { copy, iconButton, make } from './dom.js';
import DOMPurify from './vendor/dompurify.js';

/** @typedef {{html: string, nodes: Node[]}} Shown */

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

// What begins at its own side. A direction within it would hide the text that tells which.
const DIRECTED = 'p:not(li p, blockquote p), ul, ol, blockquote, h1, h2, h3, h4, h5, h6, td, th';

/** An element that shows a text. */
export class MarkdownView {
  #blocks = new Blocks();
  /** @type {Shown[]} */ #shown = [];
  /** @type {string | null} The text that shows, if it is whole. */ #last = null;

  /** @param {HTMLElement} element Which has nothing else in it. */
  constructor(element) {
    this.element = element;
  }

  /** Show a text, most often the one before and what has come. @param {string} text @param {boolean} isWhole */
  show(text, isWhole) {
    if (text === this.#last) return;
    this.#last = isWhole ? text : null;
    const { blocks, kept } = this.#blocks.update(text, isWhole);
    for (let index = kept; index < blocks.length; index++) this.#put(index, blocks[index]);
    for (const { nodes } of this.#shown.splice(blocks.length)) for (const node of nodes) remove(node);
  }

  /** Show a block in its place. @param {number} index @param {string} html */
  #put(index, html) {
    const old = this.#shown[index];
    if (old?.html === html) return;
    const fragment = /** @type {DocumentFragment} */ (/** @type {unknown} */ (DOMPurify.sanitize(html, SANITIZED)));
    decorate(fragment);
    if (old && replaceCode(old, fragment)) {
      old.html = html;
      return;
    }
    const nodes = [...fragment.childNodes];
    this.element.insertBefore(fragment, old?.nodes[0] ?? this.#shown[index + 1]?.nodes[0] ?? null);
    for (const node of old?.nodes ?? []) remove(node);
    this.#shown[index] = { html, nodes };
  }
}

/** @param {Node} node */
const remove = (node) => node.parentNode?.removeChild(node);

/**
 * Of a block of code change the code alone, so that where it is scrolled to stays.
 * @param {Shown} old
 * @param {DocumentFragment} fragment
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
  for (const element of fragment.querySelectorAll(DIRECTED)) element.setAttribute('dir', 'auto');
  for (const pre of fragment.querySelectorAll('pre')) frameCode(pre);
  for (const table of fragment.querySelectorAll('table')) {
    const frame = make('div', { class: 'table', tabindex: 0, role: 'group', 'aria-label': 'Table' });
    table.replaceWith(frame);
    frame.append(table);
  }
}

/** Code in a frame that tells its language and lets it be copied. @param {HTMLPreElement} pre */
function frameCode(pre) {
  const language = pre.querySelector('code')?.className.replace('language-', '') ?? '';
  const frame = make('div', { class: 'code', dir: 'ltr' });
  const button = iconButton('copy', 'Copy code', () => copy(pre.textContent?.replace(/\n$/, '') ?? '', button));
  pre.replaceWith(frame);
  pre.setAttribute('tabindex', '0');
  pre.setAttribute('role', 'group');
  pre.setAttribute('aria-label', language ? `Code, ${language}` : 'Code');
  frame.append(make('div', { class: 'bar' }, make('span', {}, language), button), pre);
}
