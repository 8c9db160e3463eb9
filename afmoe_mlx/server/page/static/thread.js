/** A conversation's messages as a tree: a message that was edited or asked for again has versions, of which one shows. */

/** @typedef {import('./types.js').Message} Message */
/** @typedef {import('./types.js').Settings} Settings */
/** @typedef {import('./types.js').TextFile} TextFile */

export class Thread {
  /** @type {Map<string, Message>} */ #messages = new Map();

  /** @param {Message[]} messages */
  constructor(messages = []) {
    for (const message of messages) this.#messages.set(message.id, message);
  }

  get all() {
    return [...this.#messages.values()];
  }

  /** @param {string} id */
  get(id) {
    return this.#messages.get(id);
  }

  /** @param {Message} message */
  put(message) {
    this.#messages.set(message.id, message);
  }

  /** The messages from the first to a leaf. @param {string | null} leaf @returns {Message[]} */
  path(leaf) {
    /** @type {Set<Message>} */ const found = new Set();
    for (let id = leaf; id !== null; ) {
      const message = this.#messages.get(id);
      if (!message || found.has(message)) break;
      found.add(message);
      id = message.parent;
    }
    return [...found].reverse();
  }

  /** A message and its other versions, the oldest first. @param {Message} message */
  versions(message) {
    const found = this.all.filter((other) => other.parent === message.parent && other.role === message.role);
    return found.sort((a, b) => a.created - b.created);
  }

  /** The newest leaf of those that a message leads to. @param {string} id @returns {string} */
  newest(id) {
    for (let last = id; ; ) {
      const next = this.all.filter((message) => message.parent === last).sort((a, b) => b.created - a.created)[0];
      if (!next) return last;
      last = next.id;
    }
  }
}

/** Whether an answer that is not whole can be gone on with, rather than begun anew. @param {Message} message */
export const hasBegun = (message) => !message.calls?.length && Boolean(message.content || message.reasoning);

/**
 * The request for what comes after the messages of a path; of a last one that is an answer, for its rest.
 * @param {Message[]} path
 * @param {Settings} settings
 * @returns {Record<string, any>}
 */
export function requestFor(path, settings) {
  const { system, schema, ...options } = settings;
  /** @type {Record<string, any>[]} */
  const messages = path.filter((message) => message.role !== 'assistant' || said(message)).map(sent);
  if (system) messages.unshift({ role: 'system', content: system });
  /** @type {Record<string, any>} */ const body = { messages, ...options };
  if (path.at(-1)?.role === 'assistant') body.continue_final_message = true;
  if (schema) {
    body.response_format = { type: 'json_schema', json_schema: { name: 'answer', schema: JSON.parse(schema) } };
  }
  return body;
}

/** @param {Message} message */
const said = (message) => message.content || message.reasoning || message.calls?.length;

/** @param {Message} message @returns {Record<string, any>} */
function sent({ role, content, files, reasoning, calls, call, name }) {
  if (role === 'user') return { role, content: [...(files ?? []).map(block), content].filter(Boolean).join('\n\n') };
  if (role === 'tool') return { role, content, tool_call_id: call, name };
  /** @type {Record<string, any>} */ const message = { role, content };
  if (reasoning) message.reasoning_content = reasoning;
  if (calls?.length) {
    message.tool_calls = calls.map(({ id, name, arguments: text }) => ({
      id,
      type: 'function',
      function: { name, arguments: text },
    }));
  }
  return message;
}

/** A file as the terminal chat has it in a message: its name, and its text between fences. @param {TextFile} file */
function block({ name, text }) {
  const language = (name.match(/\.([\w+#-]+)$/) ?? ['', ''])[1];
  return `File ${name}:\n${fenced(text, `.${language}`.replace(/^\.$/, ''))}`;
}

/** A text as a block of code. @param {string} text @param {string} [language] */
export function fenced(text, language = '') {
  const runs = (text.match(/`{3,}/g) ?? []).map((run) => run.length + 1);
  const fence = '`'.repeat(Math.max(3, ...runs));
  return `${fence}${language.replace(/^\./, '')}\n${text}${text === '' || text.endsWith('\n') ? '' : '\n'}${fence}`;
}
