/** The conversation on the page: its messages, and the newest kept in view. */

import { byId } from './dom.js';
import { MessageView } from './message.js';

/** @typedef {import('./types.js').Message} Message */
/** @typedef {import('./types.js').Progress} Progress */

const AT_ONCE = 40; // messages of a long conversation that are drawn in a frame
const NEAR = 60; // pixels from the end within which the page follows what comes

export class ConversationView {
  #scroller = byId('scroller', HTMLElement);
  #messages = byId('messages', HTMLElement);
  #empty = byId('empty', HTMLElement);
  #newest = byId('newest', HTMLButtonElement);
  /** @type {Map<string, MessageView>} */ #views = new Map();
  /** @type {Set<Message>} To be shown with the next frame. */ #late = new Set();
  #follows = true;
  #top = 0; // where it was scrolled to

  /**
   * @param {import('./chat.js').Chat} chat
   * @param {import('./message.js').Actions} actions
   */
  constructor(chat, actions) {
    this.chat = chat;
    this.actions = actions;
    this.#scroller.addEventListener('scroll', () => this.#look(), { passive: true });
    this.#newest.addEventListener('click', () => this.follow());
    new ResizeObserver(() => this.#keep()).observe(this.#messages);
    new ResizeObserver(() => this.#keep()).observe(this.#scroller);
  }

  /** Show the messages of the conversation that is open; those that are on the page stay. */
  show() {
    const path = this.chat.path;
    const shown = new Set(path.map(({ id }) => id));
    for (const [id, view] of this.#views) {
      if (shown.has(id)) continue;
      view.element.remove();
      this.#views.delete(id);
    }
    const first = this.#views.size ? 0 : Math.max(path.length - AT_ONCE, 0);
    /** @type {Element | null} */ let next = this.#messages.firstElementChild;
    for (const message of path.slice(first)) {
      const view = this.#views.get(message.id);
      const element = view ? this.#update(view, message) : this.#add(message);
      if (element === next) next = element.nextElementSibling;
      else this.#messages.insertBefore(element, next);
    }
    this.#empty.hidden = path.length > 0;
    this.#messages.hidden = !this.#empty.hidden;
    if (first) requestAnimationFrame(() => this.#fill());
  }

  /** Draw earlier messages of a conversation whose newest show already. */
  #fill() {
    const path = this.chat.path;
    const missing = path.findIndex(({ id }) => this.#views.has(id));
    if (missing <= 0) return;
    const first = this.#messages.firstElementChild;
    for (const message of path.slice(Math.max(missing - AT_ONCE, 0), missing)) {
      this.#messages.insertBefore(this.#add(message), first);
    }
    requestAnimationFrame(() => this.#fill());
  }

  /** Show what a message has become, with the next frame. @param {Message} message */
  change(message) {
    if (!this.#views.has(message.id)) return;
    if (!this.#late.size) requestAnimationFrame(() => this.#draw());
    this.#late.add(message);
  }

  /** @param {Message} message @param {Progress | null} progress @param {string} [words] */
  progress(message, progress, words) {
    this.#views.get(message.id)?.progress(progress, words);
  }

  /** The view of the last message of a role. @param {Message['role']} role */
  last(role) {
    const message = this.chat.path.findLast((one) => one.role === role);
    return message && this.#views.get(message.id);
  }

  /** Keep the newest in view from now on. */
  follow() {
    this.#follows = true;
    this.#keep();
    this.#look();
  }

  /** Go to the message before or after the one that has the focus. @param {number} step */
  step(step) {
    const elements = [...this.#messages.children];
    const focused = elements.findIndex((element) => element.contains(document.activeElement));
    const index = focused < 0 ? elements.length + (step < 0 ? step : -1) : focused + step;
    const element = elements[Math.min(Math.max(index, 0), elements.length - 1)];
    if (!(element instanceof HTMLElement)) return;
    element.focus({ preventScroll: true });
    element.scrollIntoView({ block: 'nearest' });
  }

  #draw() {
    const late = [...this.#late];
    this.#late.clear();
    for (const message of late) {
      const view = this.#views.get(message.id);
      if (view) this.#update(view, message);
    }
  }

  /** @param {Message} message */
  #add(message) {
    const view = new MessageView(message, this.actions);
    this.#views.set(message.id, view);
    return this.#update(view, message);
  }

  /** @param {MessageView} view @param {Message} message */
  #update(view, message) {
    const versions = this.chat.thread.versions(message);
    view.show(message, versions.findIndex(({ id }) => id === message.id) + 1, versions.length);
    return view.element;
  }

  /** Whether the user looks at the end, or has left it upwards: that it moves away as more comes is neither. */
  #look() {
    const { scrollTop, clientHeight, scrollHeight } = this.#scroller;
    if (scrollHeight - scrollTop - clientHeight < NEAR) this.#follows = true;
    else if (scrollTop < this.#top) this.#follows = false;
    this.#top = scrollTop;
    this.#newest.hidden = this.#follows;
  }

  #keep() {
    if (this.#follows) this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }
}
