/** What is being written: the message, and the text files that go with it. */

import { byId, counted, grow, iconButton, make, toast } from './dom.js';

/** @typedef {import('./types.js').TextFile} TextFile */

const MOST_BYTES = 1_000_000; // of a file, as in the terminal chat
const DRAFT = 'draft'; // in sessionStorage, with the conversation's id
const LONG = 400; // characters from which a message's tokens are counted
const IDLE = 400; // milliseconds without a change until the server counts them
const CHARACTERS_PER_TOKEN = 4; // of English, about, until it has
const NEARLY_FULL = 0.85;

export class Composer {
  #form = byId('composer', HTMLFormElement);
  #area = byId('message', HTMLTextAreaElement);
  #send = byId('send', HTMLButtonElement);
  #stop = byId('stop', HTMLButtonElement);
  #list = byId('files', HTMLUListElement);
  #note = byId('note', HTMLElement);
  #context = byId('context', HTMLElement);
  /** @type {TextFile[]} */ #files = [];
  #id = '';
  #isWriting = false;
  #total = 0;
  #limit = 0;
  #draft = { tokens: 0, isCounted: true };
  #counting = new AbortController();

  /**
   * @param {object} actions
   * @param {(content: string, files: TextFile[]) => void} actions.send
   * @param {() => void} actions.stop
   * @param {() => void} actions.editLast
   * @param {(text: string, signal: AbortSignal) => Promise<number>} actions.count How many tokens a text has.
   */
  constructor(actions) {
    this.actions = actions;
    const pick = byId('pick', HTMLInputElement);
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#area.addEventListener('input', () => this.#changed());
    this.#area.addEventListener('keydown', (event) => this.#key(event));
    this.#area.addEventListener('paste', (event) => this.#take(event, event.clipboardData));
    this.#stop.addEventListener('click', () => actions.stop());
    byId('attach', HTMLButtonElement).addEventListener('click', () => pick.click());
    pick.addEventListener('change', () => {
      this.attach([...(pick.files ?? [])]);
      pick.value = '';
    });
    document.addEventListener('dragover', (event) => {
      if (!event.dataTransfer?.types.includes('Files')) return;
      event.preventDefault();
      document.body.classList.add('drop');
    });
    document.addEventListener('dragleave', (event) => {
      if (!event.relatedTarget) document.body.classList.remove('drop');
    });
    document.addEventListener('drop', (event) => {
      document.body.classList.remove('drop');
      this.#take(event, event.dataTransfer);
    });
  }

  focus() {
    this.#area.focus();
  }

  /** Show what was being written in a conversation. @param {string} id */
  open(id) {
    if (id === this.#id) return;
    this.#id = id;
    this.#files = [];
    this.#area.value = sessionStorage.getItem(DRAFT + id) ?? '';
    this.#changed();
    this.#showFiles();
  }

  /** @param {boolean} isWriting Whether an answer is being written. */
  writing(isWriting) {
    if (isWriting === this.#isWriting) return; // with each token
    this.#isWriting = isWriting;
    const hadFocus = [this.#send, this.#stop].some((button) => button === document.activeElement);
    this.#send.hidden = isWriting;
    this.#stop.hidden = !isWriting;
    if (hadFocus) this.#area.focus();
    this.#enable();
  }

  /** How much of the context is used. @param {number} total Tokens. @param {number} limit */
  context(total, limit) {
    this.#total = total;
    this.#limit = limit;
    this.#measure();
  }

  /** Take text files along; a line says of others why not. @param {File[]} files */
  async attach(files) {
    for (const file of files) {
      const name = file.name || 'pasted.txt';
      if (file.size > MOST_BYTES) {
        toast(`${name} has more than a megabyte: attach a part of it.`);
        continue;
      }
      const text = decoded(await file.arrayBuffer());
      if (text === null) toast(`${name} is no UTF-8 text: the model reads nothing else.`);
      else this.#files.push({ name, text });
    }
    this.#showFiles();
    this.#changed();
    this.focus();
  }

  /** @param {Event} event @param {DataTransfer | null} data */
  #take(event, data) {
    const files = [...(data?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    this.attach(files);
  }

  #submit() {
    const content = this.#area.value.trim();
    if (this.#isWriting || !(content || this.#files.length)) return;
    const files = this.#files;
    this.#files = [];
    this.#area.value = '';
    this.#changed();
    this.#showFiles();
    this.actions.send(content, files);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.isComposing) return;
    const hasKeyboard = matchMedia('(hover: hover)').matches; // a phone's return key begins a line
    if (event.key === 'Enter' && !event.shiftKey && (hasKeyboard || event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.#submit();
    } else if (event.key === 'Escape' && !this.#isWriting) {
      this.#area.blur(); // so that a Mac's Option key, with which characters are typed, is one for commands
    } else if (event.key === 'ArrowUp' && !this.#area.value && !event.shiftKey) {
      event.preventDefault();
      this.actions.editLast();
    }
  }

  #changed() {
    if (this.#area.value) sessionStorage.setItem(DRAFT + this.#id, this.#area.value);
    else sessionStorage.removeItem(DRAFT + this.#id);
    grow(this.#area);
    this.#enable();
    this.#count();
  }

  /** Reckon what the message has, at once about, then exactly. */
  #count() {
    const text = [...this.#files.map((file) => file.text), this.#area.value].join('\n\n');
    this.#counting.abort();
    this.#counting = new AbortController();
    const { signal } = this.#counting;
    const isLong = text.length > LONG;
    this.#draft = { tokens: isLong ? Math.round(text.length / CHARACTERS_PER_TOKEN) : 0, isCounted: !isLong };
    this.#measure();
    if (!isLong) return;
    setTimeout(async () => {
      const tokens = signal.aborted ? null : await this.actions.count(text, signal).catch(() => null);
      if (tokens === null || signal.aborted) return;
      this.#draft = { tokens, isCounted: true };
      this.#measure();
    }, IDLE);
  }

  #enable() {
    this.#send.disabled = this.#isWriting || !(this.#area.value.trim() || this.#files.length);
  }

  #measure() {
    const { tokens, isCounted } = this.#draft;
    const total = this.#total + tokens;
    this.#context.hidden = !this.#limit || !total;
    const share = this.#limit ? total / this.#limit : 0;
    byId('used', HTMLMeterElement).value = Math.min(share, 1);
    const about = isCounted ? '' : '≈ ';
    const words = `${about}${counted(total)} of ${counted(this.#limit)} tokens`;
    byId('used-words', HTMLElement).textContent = words;
    this.#note.hidden = share < NEARLY_FULL;
    this.#note.textContent =
      share >= 1
        ? 'This is more than the context has room for: shorten the message, edit an earlier one, or begin anew.'
        : `The context is nearly full: ${counted(this.#limit - total)} tokens are left. Edit an earlier message, or begin a new conversation.`;
  }

  #showFiles() {
    const rows = this.#files.map((file) => {
      const remove = () => {
        this.#files = this.#files.filter((other) => other !== file);
        this.#showFiles();
        this.#changed();
        this.focus();
      };
      const size = `${counted(Math.ceil(file.text.length / 1000))} kB`;
      const words = [make('span', { dir: 'auto' }, file.name), make('span', { class: 'quiet' }, size)];
      return make('li', {}, ...words, iconButton('close', `Remove ${file.name}`, remove));
    });
    this.#list.replaceChildren(...rows);
    this.#list.hidden = !rows.length;
  }
}

/** A text, or null for what is none. @param {ArrayBuffer} bytes */
function decoded(bytes) {
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    return text.includes('\0') ? null : text.replace(/\r\n/g, '\n');
  } catch {
    return null;
  }
}
