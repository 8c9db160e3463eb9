/** The conversation that is open, and the answers that are being written, in it or in others. */

import { Answering } from './answering.js';
import { newId } from './store.js';
import { Thread } from './thread.js';

/** @typedef {import('./types.js').Conversation} Conversation */
/** @typedef {import('./types.js').Message} Message */
/** @typedef {import('./types.js').Progress} Progress */
/** @typedef {import('./types.js').Settings} Settings */
/** @typedef {import('./types.js').TextFile} TextFile */

const WRITING = 'writing'; // in sessionStorage: the answers that this tab writes, with which it goes on after a reload
const TITLE = 70; // characters
const LOOKED_AFTER = 5000; // milliseconds between two looks whether other tabs still write their answers

/**
 * What is told of it.
 * @typedef {object} Listener
 * @property {() => void} opened Another conversation, another branch of it, or other settings.
 * @property {(message: Message) => void} changed
 * @property {(message: Message, progress: Progress | null, words?: string) => void} progress
 * @property {(words: string) => void} say
 * @property {() => void} listed Conversations are others, or in another order.
 */

/** @param {Settings} [settings] @returns {Conversation} */
export function newConversation(settings = {}) {
  return { id: newId(), title: '', created: Date.now(), changed: Date.now(), leaf: null, settings: { ...settings } };
}

export class Chat {
  /** @type {Map<string, Answering>} By the ids of their messages. */ #answers = new Map();
  /** What this tab was writing when it was left, by its id. @type {Map<string, Message>} */ #left = new Map();
  #loads = 0;
  #isLoaded = false;
  /** @type {Promise<unknown>} What is asked next waits for it. */ #opening = Promise.resolve();
  thread = new Thread();
  conversation = newConversation();

  /**
   * @param {import('./store.js').Store} store
   * @param {import('./api.js').Server} server
   * @param {Listener} listener
   */
  constructor(store, server, listener) {
    this.store = store;
    this.server = server;
    this.listener = listener;
    store.ontold = (told) => this.#hear(told);
    for (const message of JSON.parse(sessionStorage.getItem(WRITING) ?? '[]')) this.#left.set(message.id, message);
    addEventListener('pagehide', () => this.#leave());
    setInterval(() => this.#mend(this.path), LOOKED_AFTER);
  }

  /** The messages that show. */
  get path() {
    return this.thread.path(this.conversation.leaf);
  }

  /** Whether an answer that shows is being written, in whatever tab. */
  get isWriting() {
    return this.path.some(({ state }) => state === 'writing');
  }

  /** Whether a conversation is open, and none about to be. @param {string | null} id null: any that has nothing in it. */
  shows(id) {
    return this.#isLoaded && (id === null ? this.conversation.leaf === null : this.conversation.id === id);
  }

  /** Open a conversation; one that is not there: a new one. @param {string | null} id */
  async open(id) {
    const opening = this.#load(id);
    this.#opening = opening;
    await this.#mend(await opening);
  }

  /** Its messages; none if another is to be opened meanwhile. @param {string | null} id @returns {Promise<Message[]>} */
  async #load(id) {
    this.#loads += 1;
    this.#isLoaded = false;
    const turn = this.#loads;
    const found = id === null ? undefined : await this.store.conversation(id);
    const defaults = await this.store.setting('defaults');
    const messages = found ? await this.store.messages(found.id) : [];
    if (turn !== this.#loads) return [];
    this.#isLoaded = true;
    this.conversation = found ?? newConversation(defaults);
    const written = messages.map((message) => this.#answers.get(message.id)?.message ?? this.#newer(message));
    this.thread = new Thread(written);
    this.listener.opened();
    return written;
  }

  /** A kept message, or what was on the page of it when this tab was left. @param {Message} message */
  #newer(message) {
    const left = this.#left.get(message.id);
    const isNewer = left && ['writing', 'cut'].includes(message.state ?? '') && lengthOf(left) >= lengthOf(message);
    return isNewer ? left : message;
  }

  /**
   * Answers that nobody writes any more: go on with this tab's own, and say of the others that they are broken off.
   * @param {Message[]} messages
   */
  async #mend(messages) {
    for (const message of messages.filter(({ id, state }) => state === 'writing' && !this.#answers.has(id))) {
      if (await this.store.isWritten(message.id)) continue;
      if (this.#left.delete(message.id)) this.goOn(message);
      else {
        message.state = 'cut';
        await this.store.putMessage(message);
        this.listener.changed(message);
      }
    }
  }

  /** The page is closed, or loaded again: what is not kept yet is. */
  #leave() {
    this.#remember();
    for (const [id, answering] of this.#answers) {
      answering.save();
      this.store.tell('left', id);
    }
  }

  /** @param {string} content @param {TextFile[]} [files] */
  async send(content, files = []) {
    await this.#opening;
    const message = this.#newMessage('user', content, this.conversation.leaf);
    if (files.length) message.files = files;
    if (!this.conversation.title) this.conversation.title = titleOf(content || files[0].name);
    await this.#add(message);
    await this.#ask(message.id);
  }

  /** Keep another version of a message, and answer it if it is the user's. @param {Message} message @param {string} content */
  async edit(message, content) {
    if (content === message.content && message.role !== 'user') return;
    this.stop();
    const { parent, role, files, reasoning } = message;
    const edited = { ...this.#newMessage(role, content, parent), files, reasoning };
    if (role === 'assistant') edited.state = 'edited'; // it may be gone on with
    await this.#add(edited);
    if (role === 'user') await this.#ask(edited.id);
  }

  /** Write another version of an answer. @param {Message} message */
  async again(message) {
    this.stop();
    await this.#ask(message.parent);
  }

  /** Write the rest of an answer that is not whole. @param {Message} message */
  async goOn(message) {
    await this.#write(message);
  }

  /** Show another version of a message. @param {Message} message @param {number} step */
  async turn(message, step) {
    const versions = this.thread.versions(message);
    const other = versions[versions.indexOf(message) + step];
    if (!other) return;
    this.conversation.leaf = this.thread.newest(other.id);
    this.listener.opened();
    await this.store.put(this.conversation);
  }

  /** End the answer that shows, and keep what there is of it. */
  stop() {
    for (const { id, state } of this.path) {
      this.#answers.get(id)?.stop();
      if (state === 'writing' && !this.#answers.has(id)) this.store.tell('stop', id);
    }
  }

  /** End all answers of a conversation. @param {string} id */
  async end(id) {
    const own = [...this.#answers.values()].filter(({ message }) => message.conversation === id);
    await Promise.all(own.map((answering) => answering.stop()));
  }

  /** Change what is kept of a conversation beside its messages. @param {Conversation} conversation @param {Partial<Conversation>} changes */
  async change(conversation, changes) {
    const target = conversation.id === this.conversation.id ? this.conversation : conversation;
    Object.assign(target, changes);
    if (target.leaf !== null) await this.store.put(target); // a new one is kept with its first message
    this.listener.opened();
    this.listener.listed();
  }

  /** @param {Message['role']} role @param {string} content @param {string | null} parent @returns {Message} */
  #newMessage(role, content, parent) {
    return { id: newId(), conversation: this.conversation.id, parent, role, content, created: Date.now() };
  }

  /** @param {Message} message */
  async #add(message) {
    this.thread.put(message);
    Object.assign(this.conversation, { leaf: message.id, changed: Date.now() });
    this.listener.opened();
    await this.store.put(this.conversation, message);
    this.listener.listed();
  }

  /** Answer what a message and those before it say. @param {string | null} parent */
  async #ask(parent) {
    const message = this.#newMessage('assistant', '', parent);
    message.state = 'writing';
    await this.#add(message);
    await this.#write(message);
  }

  /** @param {Message} message */
  async #write(message) {
    if (this.#answers.has(message.id)) return;
    const before = this.thread.path(message.parent);
    const answering = new Answering(
      message,
      before,
      { ...this.conversation.settings },
      {
        server: this.server,
        save: (written) => this.store.putMessage(written),
        changed: this.listener.changed,
        progress: this.listener.progress,
        say: this.listener.say,
      },
    );
    this.#answers.set(message.id, answering);
    this.#remember();
    const release = this.store.claim(message.id);
    try {
      await answering.write();
    } finally {
      release();
      this.#answers.delete(message.id);
      this.#remember();
      this.listener.changed(message);
    }
  }

  #remember() {
    sessionStorage.setItem(WRITING, JSON.stringify([...this.#answers.values()].map(({ message }) => message)));
  }

  /** What another tab has done. @param {import('./store.js').Told} told */
  async #hear({ kind, id }) {
    if (kind === 'stop') this.#answers.get(id)?.stop();
    if (kind === 'conversation' || kind === 'removed') this.listener.listed();
    if (kind === 'left') this.#mend(this.path.filter((message) => message.id === id));
    if (kind === 'removed') this.end(id);
    if (kind === 'removed' && id === this.conversation.id) await this.open(null);
    if (kind === 'conversation' && id === this.conversation.id) await this.#reread();
    if (kind === 'message') await this.#rereadMessage(id);
  }

  async #reread() {
    const found = await this.store.conversation(this.conversation.id);
    if (!found) return;
    const before = this.conversation.leaf;
    this.conversation = found;
    if (found.leaf !== before) {
      for (const message of await this.store.messages(found.id)) {
        if (!this.#answers.has(message.id)) this.thread.put(message);
      }
    }
    this.listener.opened();
  }

  /** @param {string} id */
  async #rereadMessage(id) {
    const message = await this.store.message(id);
    const answering = this.#answers.get(id);
    if (answering && message?.state === 'cut') await answering.save(); // another tab had to wait too long for a word
    if (answering || message?.conversation !== this.conversation.id) return;
    this.thread.put(message);
    this.listener.changed(message);
  }
}

/** @param {Message} message */
const lengthOf = ({ content, reasoning = '' }) => content.length + reasoning.length;

/** The first words. @param {string} text */
function titleOf(text) {
  const line = text.trim().split(/\s+/).join(' ');
  return line.length <= TITLE ? line : `${line.slice(0, TITLE).replace(/\s\S*$/, '')} …`;
}
