/** What is kept in the browser: conversations, their messages, settings; other tabs are told of each change. */

/** @typedef {import('./types.js').Conversation} Conversation */
/** @typedef {import('./types.js').Message} Message */

/**
 * What a tab tells the others: what has changed, or been removed; who writes an answer; that it is to stop, or was left.
 * @typedef {object} Told
 * @property {'conversation' | 'message' | 'removed' | 'who' | 'mine' | 'stop' | 'left'} kind
 * @property {string} id
 */

const NAME = 'afmoe-mlx';
const VERSION = 1;
const PATIENCE = 400; // milliseconds in which another tab says that it writes an answer

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** An id that no other has; randomUUID is not there on http from another machine. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

export class Store {
  /** @type {IDBDatabase} */ #database;
  #channel = new BroadcastChannel(NAME);
  /** @type {Set<string>} */ #own = new Set();

  /** @param {IDBDatabase} database */
  constructor(database) {
    this.#database = database;
    /** Called with what another tab has done. @type {(told: Told) => void} */
    this.ontold = () => {};
    this.#channel.addEventListener('message', (event) => {
      const told = /** @type {Told} */ (event.data);
      if (told.kind === 'who' && this.#own.has(told.id)) this.tell('mine', told.id);
      else this.ontold(told);
    });
  }

  /** @returns {Promise<Store>} */
  static async open() {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      const database = request.result;
      database.createObjectStore('conversations', { keyPath: 'id' });
      database.createObjectStore('messages', { keyPath: 'id' }).createIndex('conversation', 'conversation');
      database.createObjectStore('settings');
    };
    const database = await result(request);
    database.onversionchange = () => database.close(); // another tab has a newer page
    return new Store(database);
  }

  /**
   * @param {Told['kind']} kind
   * @param {string} id
   */
  tell(kind, id) {
    this.#channel.postMessage({ kind, id });
  }

  /** Say that this tab writes an answer, until the function that it gives is called. @param {string} id */
  claim(id) {
    this.#own.add(id);
    return () => this.#own.delete(id);
  }

  /** Whether some tab writes an answer. @param {string} id @returns {Promise<boolean>} */
  isWritten(id) {
    if (this.#own.has(id)) return Promise.resolve(true);
    return new Promise((resolve) => {
      const channel = new BroadcastChannel(NAME);
      const end = (/** @type {boolean} */ found) => {
        channel.close();
        resolve(found);
      };
      channel.onmessage = (event) => event.data.kind === 'mine' && event.data.id === id && end(true);
      setTimeout(() => end(false), PATIENCE);
      this.tell('who', id);
    });
  }

  /** All of them, the one last changed first. @returns {Promise<Conversation[]>} */
  async conversations() {
    const found = await result(this.#read('conversations').getAll());
    return found.sort((a, b) => b.changed - a.changed);
  }

  /** @param {string} id @returns {Promise<Conversation | undefined>} */
  conversation(id) {
    return result(this.#read('conversations').get(id));
  }

  /** Those of a conversation, in no order. @param {string} conversation @returns {Promise<Message[]>} */
  messages(conversation) {
    return result(this.#read('messages').index('conversation').getAll(conversation));
  }

  /** @param {string} id @returns {Promise<Message | undefined>} */
  message(id) {
    return result(this.#read('messages').get(id));
  }

  /** The ids of conversations in whose messages a text is. @param {string} text @returns {Promise<Set<string>>} */
  async search(text) {
    const wanted = text.toLocaleLowerCase();
    /** @type {Message[]} */ const all = await result(this.#read('messages').getAll());
    const found = all.filter((message) => message.content.toLocaleLowerCase().includes(wanted));
    return new Set(found.map((message) => message.conversation));
  }

  /** @param {Conversation} conversation @param {Message[]} messages Of it, that are new or changed. */
  async put(conversation, ...messages) {
    const transaction = this.#write('conversations', 'messages');
    transaction.objectStore('conversations').put(conversation);
    for (const message of messages) transaction.objectStore('messages').put(message);
    await this.#done(transaction);
    this.tell('conversation', conversation.id);
    for (const message of messages) this.tell('message', message.id);
  }

  /** Keep a message, unless its conversation has been removed. @param {Message} message */
  async putMessage(message) {
    const transaction = this.#write('conversations', 'messages');
    const conversation = await result(transaction.objectStore('conversations').getKey(message.conversation));
    if (conversation) transaction.objectStore('messages').put(message);
    await this.#done(transaction);
    this.tell('message', message.id);
  }

  /** Remove a conversation and its messages. @param {string} id */
  async remove(id) {
    const transaction = this.#write('conversations', 'messages');
    transaction.objectStore('conversations').delete(id);
    const messages = transaction.objectStore('messages');
    const keys = await result(messages.index('conversation').getAllKeys(id));
    for (const key of keys) messages.delete(key);
    await this.#done(transaction);
    this.tell('removed', id);
  }

  /** @param {string} name @returns {Promise<any>} undefined if it was never set. */
  setting(name) {
    return result(this.#read('settings').get(name));
  }

  /** @param {string} name @param {any} value */
  async set(name, value) {
    const transaction = this.#write('settings');
    transaction.objectStore('settings').put(value, name);
    await this.#done(transaction);
  }

  /** @param {string} name */
  #read(name) {
    return this.#database.transaction(name).objectStore(name);
  }

  /** @param {string[]} names */
  #write(...names) {
    return this.#database.transaction(names, 'readwrite');
  }

  /** @param {IDBTransaction} transaction @returns {Promise<void>} */
  #done(transaction) {
    return new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error);
    });
  }
}
