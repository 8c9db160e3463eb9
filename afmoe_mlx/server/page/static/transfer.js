/** Conversations as files: Markdown for people, JSON as the terminal chat exports it, which is read again. */

import { newConversation } from './chat.js';
import { make } from './dom.js';
import { newId } from './store.js';
import { fenced, requestFor } from './thread.js';

/** @typedef {import('./types.js').Conversation} Conversation */
/** @typedef {import('./types.js').Message} Message */
/** @typedef {import('./types.js').Settings} Settings */

const TITLES = { user: 'User', assistant: 'Assistant', tool: 'Result' };
const NUMBERS = 'temperature top_p top_k min_p repetition_penalty presence_penalty frequency_penalty seed max_tokens';

/**
 * The messages that show as Markdown: a heading each, reasoning folded.
 * @param {Conversation} conversation
 * @param {Message[]} path
 * @param {string} model
 */
export function asMarkdown({ title, settings }, path, model) {
  const made = Object.entries(settings).filter(([name]) => NUMBERS.split(' ').includes(name));
  const parts = [
    `# ${title || `Chat with ${model}`}`,
    `With ${[model, ...made.map((pair) => pair.join(' '))].join(', ')}`,
  ];
  if (settings.system) parts.push('## System prompt', settings.system);
  const contents = requestFor(path, {}).messages; // with their files
  for (const [index, message] of path.filter(({ role, ...one }) => role !== 'assistant' || hasText(one)).entries()) {
    const { role, reasoning, calls = [], name } = message;
    parts.push(`## ${TITLES[role]}${role === 'tool' && name ? ` of ${name}` : ''}`);
    if (reasoning) parts.push(`<details><summary>Reasoning</summary>\n\n${reasoning.trim()}\n\n</details>`);
    const { content } = contents[index];
    if (content) parts.push(role === 'tool' ? fenced(content) : content);
    for (const call of calls) parts.push(`Call of ${call.name}:`, fenced(call.arguments, 'json'));
  }
  return `${parts.map((part) => part.trim()).join('\n\n')}\n`;
}

/** @param {Partial<Message>} message */
const hasText = ({ content, reasoning, calls }) => content || reasoning || calls?.length;

/**
 * The messages that show, in the terminal chat's form.
 * @param {Conversation} conversation
 * @param {Message[]} path
 * @param {string} model
 */
export function asObject({ title, settings }, path, model) {
  const { system, ...options } = settings;
  const messages = requestFor(path, { system }).messages.map(withThought);
  return { model, title, settings: options, messages };
}

/** The reasoning in the content, as the model wrote it. @param {Record<string, any>} message */
function withThought({ reasoning_content: reasoning, ...message }) {
  if (!reasoning) return message;
  return { ...message, content: `<think>\n${reasoning.trim()}\n</think>\n\n${message.content}` };
}

/**
 * The conversations of a file: one, or a list of them. Throws an Error for what is none.
 * @param {string} text
 * @param {string} name The file's.
 * @returns {{conversation: Conversation, messages: Message[]}[]}
 */
export function fromText(text, name) {
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error(`${name} is no JSON: expected what “Export as JSON” or the terminal’s /export writes`);
  }
  return (Array.isArray(value) ? value : [value]).map((one) => fromObject(one, name));
}

/** @param {any} value @param {string} name */
function fromObject(value, name) {
  if (!Array.isArray(value?.messages)) throw new Error(`${name} has no messages: expected an exported conversation`);
  const conversation = newConversation(settingsOf(value.settings ?? {}));
  /** @type {Message[]} */ const messages = [];
  for (const given of value.messages) {
    const { role, content } = given ?? {};
    if (!['system', 'user', 'assistant', 'tool'].includes(role) || typeof (content ?? '') !== 'string') {
      throw new Error(
        `${name}: a message has role ${JSON.stringify(role)} or no text: expected an exported conversation`,
      );
    }
    if (role === 'system') conversation.settings.system = content;
    else
      messages.push(read(given, conversation.id, messages.at(-1)?.id ?? null, conversation.created + messages.length));
  }
  if (!messages.length) throw new Error(`${name} has no messages`);
  const first = messages.find(({ role }) => role === 'user')?.content ?? '';
  conversation.title = String(value.title || first.split(/\s+/).join(' ').slice(0, 70) || name);
  conversation.leaf = messages[messages.length - 1].id;
  return { conversation, messages };
}

/** @param {any} given @param {string} conversation @param {string | null} parent @param {number} created @returns {Message} */
function read(given, conversation, parent, created) {
  const { role, tool_calls: calls, tool_call_id: call, name } = given;
  /** @type {Message} */ const message = {
    id: newId(),
    conversation,
    parent,
    role,
    content: given.content ?? '',
    created,
  };
  if (role === 'tool') return { ...message, call, name };
  if (role === 'user') return message;
  const thought =
    message.content.match(/^\s*(?:<think>)?([\s\S]*?)<\/think>\n*/) ?? message.content.match(/^\s*<think>([\s\S]*)$/);
  if (thought) {
    message.reasoning = thought[1].trim();
    message.content = message.content.slice(thought[0].length);
  }
  if (typeof given.reasoning_content === 'string') message.reasoning = given.reasoning_content;
  if (Array.isArray(calls)) {
    message.calls = calls.map((one) => {
      const { name: called, arguments: text } = one?.function ?? {};
      return {
        id: String(one?.id ?? newId()),
        name: String(called ?? ''),
        arguments: typeof text === 'string' ? text : JSON.stringify(text ?? {}),
      };
    });
  }
  message.state = given.stopped ? 'stopped' : given.cut_off ? 'full' : 'done';
  return message;
}

/** Those that this page knows, of the right kind. @param {Record<string, any>} given @returns {Settings} */
function settingsOf(given) {
  /** @type {Record<string, any>} */ const found = {};
  for (const name of NUMBERS.split(' ')) if (typeof given[name] === 'number') found[name] = given[name];
  for (const name of ['system', 'schema', 'reasoning_effort'])
    if (typeof given[name] === 'string') found[name] = given[name];
  return found;
}

/** Hand a text to the user as a file. @param {string} name @param {string} text @param {string} kind */
export function download(name, text, kind) {
  const url = URL.createObjectURL(new Blob([text], { type: kind }));
  make('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** A name for a file. @param {string} title @param {string} ending */
export function fileName(title, ending) {
  const words = title.normalize('NFC').match(/[\p{L}\p{N}]+/gu) ?? ['conversation'];
  return `${words.join('-').slice(0, 60)}.${ending}`;
}
