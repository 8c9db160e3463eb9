/** What is being written: the message, and the text files that go with it. */

import { byId, counted, iconButton, make, toast } from './dom.js';

/** @typedef {import('./types.js').TextFile} TextFile */

const MOST_BYTES = 1_000_000; // of a file, as in the terminal chat
const DRAFT = 'draft'; // in sessionStorage, with the conversation's id
const CHARACTERS_PER_TOKEN = 4; // of English, about
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

  /**
   * @param {{send: (content: string, files: TextFile[]) => void, stop: () => void, editLast: () => void}} actions
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
    this.#enable();
    this.#measure();
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
    } else if (event.key === 'ArrowUp' && !this.#area.value && !event.shiftKey) {
      event.preventDefault();
      this.actions.editLast();
    }
  }

  #changed() {
    if (this.#area.value) sessionStorage.setItem(DRAFT + this.#id, this.#area.value);
    else sessionStorage.removeItem(DRAFT + this.#id);
    this.#enable();
    this.#measure();
  }

  #enable() {
    this.#send.disabled = this.#isWriting || !(this.#area.value.trim() || this.#files.length);
  }

  #measure() {
    const { length } = this.#files.reduce((text, file) => text + file.text, this.#area.value);
    const draft = length > 400 ? Math.round(length / CHARACTERS_PER_TOKEN) : 0;
    const total = this.#total + draft;
    this.#context.hidden = !this.#limit || !total;
    const share = this.#limit ? total / this.#limit : 0;
    byId('used', HTMLMeterElement).value = Math.min(share, 1);
    const about = draft ? '≈ ' : '';
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
