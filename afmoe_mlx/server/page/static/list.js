/** The list of conversations: searched, opened, and what can be done with each. */

import { byId, icon, make, toast } from './dom.js';

/** @typedef {import('./types.js').Conversation} Conversation */

/**
 * What can be done with a conversation.
 * @typedef {object} ListActions
 * @property {(conversation: Conversation, title: string) => void} rename
 * @property {(conversation: Conversation) => Promise<() => Promise<void>>} remove Gives what brings it back.
 * @property {(conversation: Conversation, kind: 'md' | 'json') => void} download
 */

const DAY = 86_400_000;

export class List {
  #list = byId('conversations', HTMLUListElement);
  #none = byId('none', HTMLElement);
  #search = byId('search', HTMLInputElement);
  #menu = make('div', { id: 'menu', role: 'menu', popover: true });
  #timer = 0;

  /**
   * @param {import('./store.js').Store} store
   * @param {() => string} current The id of the one that is open.
   * @param {ListActions} actions
   */
  constructor(store, current, actions) {
    this.store = store;
    this.current = current;
    this.actions = actions;
    byId('pane', HTMLElement).append(this.#menu);
    this.#search.addEventListener('input', () => this.#soon());
    this.#search.addEventListener('keydown', (event) => {
      if (event.key === 'ArrowDown') this.#list.querySelector('a')?.focus();
      if (event.key === 'Escape' && this.#search.value) {
        this.#search.value = '';
        this.show();
        event.stopPropagation();
      }
    });
    this.#list.addEventListener('keydown', (event) => this.#key(event));
    this.#menu.addEventListener('keydown', (event) => this.#menuKey(event));
  }

  search() {
    this.#search.focus();
    this.#search.select();
  }

  /** Show all, or those in whose title or messages the search's words are. */
  async show() {
    const wanted = this.#search.value.trim();
    const [all, found] = await Promise.all([
      this.store.conversations(),
      wanted ? this.store.search(wanted) : Promise.resolve(null),
    ]);
    const matches = (/** @type {Conversation} */ { id, title }) =>
      found === null || found.has(id) || title.toLocaleLowerCase().includes(wanted.toLocaleLowerCase());
    const shown = all.filter(matches);
    const focused = document.activeElement?.closest('#conversations li')?.getAttribute('data-id');
    /** @type {Node[]} */ const rows = [];
    let age = '';
    for (const conversation of shown) {
      const own = ageOf(conversation.changed);
      if (own !== age) rows.push(make('li', { class: 'age' }, own));
      age = own;
      rows.push(this.#row(conversation));
    }
    this.#list.replaceChildren(...rows);
    this.#none.hidden = shown.length > 0;
    this.#none.textContent = wanted ? 'Nothing found.' : 'No conversations yet.';
    if (focused) /** @type {HTMLElement?} */ (this.#list.querySelector(`[data-id="${focused}"] a`))?.focus();
  }

  /**
   * The menu of a conversation, below a button.
   * @param {Conversation} conversation
   * @param {HTMLElement} button
   */
  menu(conversation, button) {
    const choose = (/** @type {() => void} */ action) => () => {
      this.#menu.hidePopover();
      button.focus();
      action();
    };
    const item = (/** @type {string} */ label, /** @type {() => void} */ action) =>
      make('button', { type: 'button', role: 'menuitem', onclick: choose(action) }, label);
    this.#menu.replaceChildren(
      item('Rename…', () => this.#rename(conversation)),
      item('Export as Markdown', () => this.actions.download(conversation, 'md')),
      item('Export as JSON', () => this.actions.download(conversation, 'json')),
      item('Delete', () => this.#remove(conversation)),
    );
    this.#menu.showPopover();
    const { bottom, right } = button.getBoundingClientRect();
    const { offsetWidth, offsetHeight } = this.#menu;
    this.#menu.style.left = `${Math.max(8, Math.min(right, innerWidth - 8) - offsetWidth)}px`;
    this.#menu.style.top = `${Math.min(bottom + 4, innerHeight - offsetHeight - 8)}px`;
    this.#menu.querySelector('button')?.focus();
  }

  #soon() {
    clearTimeout(this.#timer);
    this.#timer = window.setTimeout(() => this.show(), 150);
  }

  /** @param {Conversation} conversation */
  #row(conversation) {
    const { id, title } = conversation;
    const link = make('a', { href: `#${id}`, dir: 'auto', title: title || null }, title || 'Untitled');
    if (id === this.current()) link.setAttribute('aria-current', 'page');
    const label = `More: ${title || 'Untitled'}`;
    const about = { type: 'button', class: 'icon', 'aria-label': label, 'aria-haspopup': 'menu', title: 'More' };
    const button = make('button', { ...about, onclick: () => this.menu(conversation, button) }, icon('more'));
    const row = make('li', { 'data-id': id }, link, button);
    row.addEventListener('keydown', (event) => {
      if (event.target !== link) return;
      if (event.key === 'F2') this.#rename(conversation);
      else if (event.key === 'Delete') this.#remove(conversation);
    });
    return row;
  }

  /** @param {Conversation} conversation */
  #rename(conversation) {
    const input = make('input', { type: 'text', 'aria-label': 'Title', dir: 'auto', maxlength: 200 });
    input.value = conversation.title;
    const dialog = make('dialog', { class: 'small', 'aria-label': 'Rename' });
    const form = make(
      'form',
      { method: 'dialog' },
      make('h2', {}, 'Rename'),
      input,
      make(
        'div',
        { class: 'bar' },
        make('button', { type: 'button', class: 'plain', onclick: () => dialog.close() }, 'Cancel'),
        make('button', { type: 'submit', class: 'main' }, 'Rename'),
      ),
    );
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      dialog.close();
      if (input.value.trim()) this.actions.rename(conversation, input.value.trim());
    });
    dialog.append(form);
    dialog.addEventListener('close', () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
    input.select();
  }

  /** @param {Conversation} conversation */
  async #remove(conversation) {
    const restore = await this.actions.remove(conversation);
    toast(`“${conversation.title || 'Untitled'}” is deleted.`, { label: 'Undo', action: restore });
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || event.altKey) return;
    event.preventDefault();
    const links = [...this.#list.querySelectorAll('a')];
    const next = links.findIndex((link) => link.parentElement?.contains(document.activeElement)) + step;
    if (next < 0) this.#search.focus();
    else links[next]?.focus();
  }

  /** @param {KeyboardEvent} event */
  #menuKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const items = [...this.#menu.querySelectorAll('button')];
    const index = items.findIndex((item) => item.matches(':focus'));
    items[(index + step + items.length) % items.length].focus();
  }
}

/** @param {number} time */
function ageOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return 'Today';
  if (time >= midnight - DAY) return 'Yesterday';
  if (time >= midnight - 7 * DAY) return 'The last week';
  return new Date(time).toLocaleDateString('en', { month: 'long', year: 'numeric' });
}
