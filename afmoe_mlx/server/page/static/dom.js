/** Elements, made without markup. */

/**
 * An element by its id, of a kind.
 * @template {Element} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
export function byId(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`no ${kind.name} #${id}`);
  return found;
}

/**
 * An element with attributes (false and null: none; true: an empty one), listeners (`onclick`) and children.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, any>} [attributes]
 * @param {(Node | string | null)[]} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/**
 * Give an element an attribute, or none (null), if it has another: what is set again is a change to who watches.
 * @param {Element} element
 * @param {string} name
 * @param {string | null} value
 */
export function set(element, name, value) {
  if (element.getAttribute(name) === value) return;
  if (value === null) element.removeAttribute(name);
  else element.setAttribute(name, value);
}

/** Give an element a text, if it has another. @param {Element} element @param {string} text */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * One of the icons of index.html.
 * @param {string} name
 */
export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('aria-hidden', 'true');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  use.setAttribute('href', `#i-${name}`);
  svg.append(use);
  return svg;
}

/**
 * A button that shows an icon alone.
 * @param {string} name Of the icon.
 * @param {string} label
 * @param {(event: Event) => void} onclick
 * @param {Record<string, any>} [attributes]
 */
export function iconButton(name, label, onclick, attributes = {}) {
  const about = { type: 'button', class: 'icon', title: label, 'aria-label': label, onclick };
  return make('button', { ...about, ...attributes }, icon(name));
}

/** Let a field be as high as its text where style sheets cannot (`field-sizing`). @param {HTMLTextAreaElement} area */
export function grow(area) {
  if (CSS.supports('field-sizing', 'content')) return;
  area.style.height = 'auto';
  area.style.height = `${area.scrollHeight + 2}px`;
}

/**
 * Copy a text, and show on the button that it was done.
 * @param {string} text
 * @param {Element} button
 */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text); // no clipboard where the page is not trusted: on http from another machine
  }
  const use = button.querySelector('use');
  use?.setAttribute('href', '#i-done');
  button.classList.add('done');
  setTimeout(() => {
    use?.setAttribute('href', '#i-copy');
    button.classList.remove('done');
  }, 1500);
}

/** @param {string} text */
function copyBySelection(text) {
  const focused = document.activeElement;
  const area = make('textarea', { class: 'hidden', 'aria-hidden': 'true' });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand('copy');
  area.remove();
  if (focused instanceof HTMLElement) focused.focus();
}

/**
 * A word in a corner, that goes away by itself.
 * @param {string} text
 * @param {{label: string, action: () => void}} [button]
 */
export function toast(text, button) {
  const element = make('div', { class: 'toast' }, make('span', { dir: 'auto' }, text));
  if (button) {
    const act = () => {
      element.remove();
      button.action();
    };
    element.append(make('button', { type: 'button', class: 'plain', onclick: act }, button.label));
  }
  byId('toasts', HTMLElement).append(element);
  setTimeout(() => element.remove(), button ? 10000 : 5000);
}

const NUMBERS = new Intl.NumberFormat('en');

/** @param {number} number */
export const counted = (number) => NUMBERS.format(number);

/** So many of what a word names. @param {number} number @param {string} word */
export const many = (number, word) => `${counted(number)} ${word}${number === 1 ? '' : 's'}`;
