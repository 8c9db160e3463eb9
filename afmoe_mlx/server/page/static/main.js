/** Puts the page together. */

import { Server } from './api.js';
import { Chat } from './chat.js';
import { Composer } from './composer.js';
import { ConversationView } from './conversation.js';
import { askKey, tellKeys } from './dialogs.js';
import { byId, counted, toast } from './dom.js';
import { List } from './list.js';
import { askSettings } from './settings.js';
import { Store } from './store.js';
import { Thread } from './thread.js';
import { asMarkdown, asObject, download, fileName, fromText } from './transfer.js';

/** @typedef {import('./types.js').Conversation} Conversation */
/** @typedef {import('./types.js').Model} Model */

const NARROW = matchMedia('(max-width: 48rem)'); // as in style.css
/** @type {Model | null} */ let model = null;
let isMeeting = false;
const server = new Server();
const store = await Store.open().catch((error) => {
  document.body.textContent = `This browser keeps nothing for this page (${error?.message ?? error}): it needs IndexedDB.`;
  throw error;
});
const chat = new Chat(store, server, {
  opened: show,
  changed: (message) => {
    conversation.change(message);
    composer.writing(chat.isWriting);
    if (message.state !== 'writing') showContext();
  },
  progress: (message, progress, words) => conversation.progress(message, progress, words),
  say,
  listed: () => list.show(),
});
const conversation = new ConversationView(chat, {
  edit: (message, content) => act(() => chat.edit(message, content)),
  again: (message) => act(() => chat.again(message)),
  goOn: (message) => act(() => chat.goOn(message)),
  turn: (message, step) => act(() => chat.turn(message, step)),
});
const composer = new Composer({
  send: (content, files) => act(() => chat.send(content, files)),
  stop: () => chat.stop(),
  editLast: () => conversation.last('user')?.edit(),
  count: (text, signal) => server.count(text, signal),
});
const list = new List(store, () => chat.conversation.id, { rename, remove, download: exportOne });

/** Do what may write an answer, and follow it. @param {() => Promise<void>} action */
function act(action) {
  conversation.follow();
  action().catch((error) => toast(error?.message ?? String(error)));
}

/** Find out what is served; where nothing answers, once it does. */
async function meet() {
  if (isMeeting) return;
  isMeeting = true;
  if (!model) byId('served', HTMLElement).textContent = 'Waiting for the server …';
  try {
    await server.back(new AbortController().signal);
    await greet();
  } finally {
    isMeeting = false;
  }
}

async function greet() {
  const served = byId('served', HTMLElement);
  try {
    model = await server.model();
    byId('model', HTMLElement).textContent = model.name;
    served.textContent = `${model.name}, ${counted(model.context)} tokens of context`;
    showContext();
  } catch (error) {
    served.textContent = error instanceof Error ? error.message : String(error);
  }
}

/** Show the conversation that is open. */
function show() {
  const { id, title, leaf, settings } = chat.conversation;
  byId('title', HTMLElement).textContent = title || 'New conversation';
  document.title = title ? `${title} – afmoe-mlx` : 'afmoe-mlx';
  byId('more', HTMLButtonElement).hidden = leaf === null;
  byId('show-settings', HTMLButtonElement).classList.toggle('set', Object.keys(settings).length > 0);
  const place = leaf === null ? '' : `#${id}`;
  if (location.hash !== place) history.replaceState(null, '', place || location.pathname);
  conversation.show();
  composer.open(leaf === null ? 'new' : id);
  composer.writing(chat.isWriting);
  showContext();
  for (const link of document.querySelectorAll('#conversations a')) {
    if (link.getAttribute('href') === `#${id}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
}

function showContext() {
  const total = chat.path.findLast((message) => message.figures)?.figures?.total ?? 0;
  composer.context(total, model?.context ?? 0);
}

/** @param {string} words */
function say(words) {
  byId('status', HTMLElement).textContent = words;
}

/** @param {string | null} id */
async function open(id) {
  showSide(false);
  // before what takes its time, in which the user may have gone on to somewhere else
  if (matchMedia('(hover: hover)').matches) composer.focus();
  if (chat.shows(id)) return;
  conversation.follow();
  await chat.open(id);
  conversation.follow();
}

/** @param {Conversation} target @param {string} title */
function rename(target, title) {
  return chat.change(target, { title });
}

/** @param {Conversation} target */
async function remove(target) {
  await chat.end(target.id);
  const messages = await store.messages(target.id);
  await store.remove(target.id);
  if (target.id === chat.conversation.id) await open(null);
  await list.show();
  return async () => {
    await store.put(target, ...messages);
    await list.show();
    await open(target.id);
  };
}

/** @param {Conversation} target */
async function pathOf(target) {
  return new Thread(await store.messages(target.id)).path(target.leaf);
}

/** @param {Conversation} target @param {'md' | 'json'} kind */
async function exportOne(target, kind) {
  const path = await pathOf(target);
  const name = model?.name ?? '';
  if (kind === 'md') download(fileName(target.title, 'md'), asMarkdown(target, path, name), 'text/markdown');
  else download(fileName(target.title, 'json'), written(asObject(target, path, name)), 'application/json');
}

async function exportAll() {
  const all = await store.conversations();
  if (!all.length) return toast('There is nothing to export yet.');
  const objects = await Promise.all(all.map(async (one) => asObject(one, await pathOf(one), model?.name ?? '')));
  download('conversations.json', written(objects), 'application/json');
}

/** @param {unknown} value */
const written = (value) => `${JSON.stringify(value, null, 2)}\n`;

/** @param {File[]} files */
async function importFiles(files) {
  /** @type {Conversation | undefined} */ let last;
  for (const file of files) {
    try {
      for (const { conversation: one, messages } of fromText(await file.text(), file.name)) {
        await store.put(one, ...messages);
        last = one;
      }
    } catch (error) {
      toast(error instanceof Error ? error.message : String(error));
    }
  }
  await list.show();
  if (last) await open(last.id);
}

function showSettings() {
  askSettings(chat.conversation.settings, model, (settings, isForNew) => {
    chat.change(chat.conversation, { settings });
    if (isForNew) store.set('defaults', settings);
  });
}

/** Show the list of conversations, or hide it, where there is no room for both. @param {boolean} [isOpen] */
function showSide(isOpen) {
  const [before, button] = [document.body.classList.contains('side'), byId('show-side', HTMLButtonElement)];
  const shows = document.body.classList.toggle('side', isOpen && NARROW.matches);
  button.setAttribute('aria-expanded', String(shows));
  byId('pane', HTMLElement).inert = shows;
  if (shows) byId('new', HTMLButtonElement).focus();
  else if (before) button.focus();
}

/** @type {Record<string, () => void>} */
const ALT = {
  KeyN: () => open(null),
  KeyK: () => {
    showSide(true);
    list.search();
  },
  KeyS: showSettings,
  KeyR: () => {
    const message = conversation.last('assistant')?.message;
    if (message && !chat.isWriting) act(() => chat.again(message));
  },
  KeyC: () => {
    const message = conversation.last('assistant')?.message;
    if (message && !['done', 'writing'].includes(message.state ?? 'done')) act(() => chat.goOn(message));
  },
  ArrowUp: () => conversation.step(-1),
  ArrowDown: () => conversation.step(1),
};

document.addEventListener('keydown', (event) => {
  if (event.defaultPrevented || event.isComposing || document.querySelector('dialog[open]')) return;
  const isTyping = event.target instanceof Element && event.target.matches('input, textarea, select');
  const { altKey, ctrlKey, metaKey, code, key } = event;
  if (key === 'Escape' && document.querySelector(':popover-open')) return;
  const isTyped = isTyping && key.length === 1 && !/[a-z]/i.test(key); // a Mac's Option+S is ß
  if (altKey && !ctrlKey && !metaKey && ALT[code] && !isTyped) ALT[code]();
  else if (key === 'Escape' && document.body.classList.contains('side')) showSide(false);
  else if (key === 'Escape' && chat.isWriting) chat.stop();
  else if (key === '/' && !isTyping && !ctrlKey && !metaKey) composer.focus();
  else if (key === '?' && !isTyping) tellKeys();
  else return;
  event.preventDefault();
});

/** @param {string} id @param {() => void} action */
const onClick = (id, action) => byId(id, HTMLElement).addEventListener('click', action);
const pick = byId('pick-import', HTMLInputElement);
const more = byId('more', HTMLButtonElement);
onClick('new', () => open(null));
onClick('show-side', () => showSide());
NARROW.addEventListener('change', () => showSide(false));
onClick('shade', () => showSide(false));
onClick('show-settings', showSettings);
onClick('more', () => list.menu(chat.conversation, more));
onClick('help', tellKeys);
onClick('newest', () => composer.focus());
onClick('export-all', exportAll);
onClick('import', () => pick.click());
pick.addEventListener('change', async () => {
  await importFiles([...(pick.files ?? [])]);
  pick.value = '';
});
addEventListener('hashchange', ({ newURL }) => open(new URL(newURL).hash.slice(1) || null)); // the address may be another by now

server.onkey = async () => {
  const key = await askKey(sessionStorage.getItem('key') !== null);
  if (key !== null && !model) setTimeout(meet);
  return key;
};
await Promise.all([chat.open(location.hash.slice(1) || null), list.show()]);
composer.focus();
document.addEventListener('visibilitychange', () => !document.hidden && model && meet());
await meet();
