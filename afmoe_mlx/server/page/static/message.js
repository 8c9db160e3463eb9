/** One message on the page, from its first piece on. */

import { copy, counted, grow, icon, iconButton, make, many, set, write } from './dom.js';
import { MarkdownView } from './markdown.js';
import { hasBegun } from './thread.js';

/** @typedef {import('./types.js').Message} Message */
/** @typedef {import('./types.js').Figures} Figures */
/** @typedef {import('./types.js').Progress} Progress */

/**
 * What can be done with a message.
 * @typedef {object} Actions
 * @property {(message: Message, content: string) => void} edit
 * @property {(message: Message) => void} again
 * @property {(message: Message) => void} goOn
 * @property {(message: Message, step: number) => void} turn To another version.
 */

const SHORTEST = 0.01; // seconds of an answer of which tokens a second can be told
const NAMES = { user: 'You', assistant: 'Answer', tool: 'Result of a tool' };
const STATES = {
  writing: '',
  done: '',
  stopped: 'Stopped.',
  cut: 'Broken off.',
  full: 'At its limit.',
  failed: '',
  edited: 'Edited.',
};

export class MessageView {
  #reasoning = new Folded('reasoning');
  #content = make('div', { class: 'content' });
  #text = new MarkdownView(this.#content);
  #calls = make('div');
  #progress = make('div', { class: 'progress', hidden: true });
  #figures = make('p', { class: 'figures' });
  #trouble = make('p', { class: 'trouble', hidden: true, dir: 'auto' });
  #tools = make('div', { class: 'tools' });
  #shown = ''; // of which the buttons are

  /**
   * @param {Message} message
   * @param {Actions} actions
   */
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    const heading = make('h2', { class: 'hidden' }, NAMES[message.role]);
    const answers = [this.#reasoning.element, this.#content, this.#calls, this.#progress, this.#trouble];
    const parts = message.role === 'assistant' ? answers : [this.#content];
    this.foot = make('footer', {}, this.#figures, this.#tools);
    this.element = make('article', { class: message.role, 'data-id': message.id, tabindex: -1 }, heading, ...parts);
    this.element.append(this.foot);
  }

  /**
   * Show what it has become.
   * @param {Message} message
   * @param {number} version
   * @param {number} versions How many there are.
   */
  show(message, version, versions) {
    this.message = message;
    const { role, content, reasoning = '', state, figures, trouble } = message;
    const isWritten = state === 'writing';
    set(this.element, 'aria-busy', isWritten ? 'true' : 'false');
    this.element.classList.toggle('waits', isWritten && !content && !reasoning);
    this.#reasoning.show(reasoning, lengthOf(reasoning, figures, isWritten && !content), !isWritten);
    if (role === 'assistant') this.#text.show(content, !isWritten);
    else this.#showWritten(message);
    this.#showCalls(message);
    if (!isWritten || content || reasoning) this.progress(null);
    write(this.#figures, isWritten ? '' : figuresOf(figures));
    const words = [trouble, state ? STATES[state] : ''].filter(Boolean).join(' ');
    write(this.#trouble, words);
    set(this.#trouble, 'hidden', words ? null : '');
    this.#showTools(version, versions);
  }

  /** How far the prompt is read; null: that is over. @param {Progress | null} progress @param {string} [words] */
  progress(progress, words = 'Reading') {
    set(this.#progress, 'hidden', progress === null ? '' : null);
    if (progress === null) return;
    const { total, cache, processed } = progress;
    const bar = make('progress', { 'aria-label': 'Prompt read', max: total || null, value: total ? processed : null });
    const known = cache ? `, ${counted(cache)} known` : '';
    const text = total ? `${words} ${counted(processed)} of ${counted(total)} tokens${known}` : words;
    this.#progress.replaceChildren(bar, make('span', {}, text));
  }

  /** Let the user change the text. */
  edit() {
    const { message } = this;
    if (this.element.querySelector('form.edit')) return;
    const area = make('textarea', { dir: 'auto', 'aria-label': 'Edited message', rows: 1 });
    area.value = message.content;
    const done = () => {
      form.remove();
      this.element.classList.remove('edited');
      this.element.focus();
    };
    const submit = (/** @type {Event} */ event) => {
      event.preventDefault();
      done();
      this.actions.edit(this.message, area.value);
    };
    const keys = (/** @type {KeyboardEvent} */ event) => {
      if (event.key === 'Escape') {
        event.stopPropagation();
        done();
      } else if (event.key === 'Enter' && (event.metaKey || event.ctrlKey)) submit(event);
    };
    const [verb, what] = message.role === 'user' ? ['Send', 'Ask again with this'] : ['Save', 'Keep this'];
    const buttons = make(
      'div',
      { class: 'bar' },
      make('button', { type: 'button', class: 'plain', onclick: done }, 'Cancel'),
      make('button', { type: 'submit', class: 'main', title: `${what} (Ctrl+Enter)` }, verb),
    );
    const form = make('form', { class: 'edit', onsubmit: submit, onkeydown: keys }, area, buttons);
    this.element.classList.add('edited');
    this.element.append(form);
    area.addEventListener('input', () => grow(area));
    grow(area);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  /** What the user or a tool wrote, as it was written: it stays as it is. @param {Message} message */
  #showWritten({ role, name, content, files = [] }) {
    if (this.#content.hasChildNodes()) return;
    if (role === 'tool') {
      this.#content.append(callBlock(`Result of ${name ?? 'a tool'}`, content));
      return;
    }
    const attached = files.map(({ name, text }) => {
      const summary = make('summary', { dir: 'auto' }, icon('attach'), name);
      return make('details', { class: 'file' }, summary, make('pre', { tabindex: 0, dir: 'auto' }, text));
    });
    this.#content.replaceChildren(...attached, make('div', { class: 'written', dir: 'auto' }, content));
  }

  /** @param {Message} message */
  #showCalls({ calls = [] }) {
    const texts = calls.map((call) => `Call of ${call.name}\n${call.arguments}`).join('\n\n');
    if (this.#calls.dataset.shown === texts) return;
    this.#calls.dataset.shown = texts;
    this.#calls.replaceChildren(...calls.map((call) => callBlock(`Call of ${call.name}`, indented(call.arguments))));
  }

  /** @param {number} version @param {number} versions */
  #showTools(version, versions) {
    const { message, actions } = this;
    const { role, state } = message;
    const shown = `${state} ${version} ${versions} ${hasBegun(message)}`;
    if (shown === this.#shown) return;
    this.#shown = shown;
    const label = NAMES[role].toLowerCase();
    /** @type {Node[]} */ const tools = [];
    if (versions > 1) {
      const turn = (/** @type {number} */ step) => () => actions.turn(this.message, step);
      tools.push(
        iconButton('left', 'Earlier version', turn(-1), { disabled: version === 1 }),
        make('span', { class: 'version', 'aria-label': `Version ${version} of ${versions}` }, `${version}/${versions}`),
        iconButton('right', 'Later version', turn(1), { disabled: version === versions }),
      );
    }
    if (state !== 'writing') {
      const button = iconButton('copy', `Copy ${role === 'user' ? 'message' : label}`, () =>
        copy(this.message.content, button),
      );
      tools.push(button);
      if (role !== 'tool')
        tools.push(iconButton('edit', `Edit ${role === 'user' ? 'message' : label}`, () => this.edit()));
      if (role === 'assistant') tools.push(iconButton('again', 'Ask again', () => actions.again(this.message)));
      if (role === 'assistant' && state !== 'done' && hasBegun(message)) {
        const goOn = () => actions.goOn(this.message);
        tools.push(make('button', { type: 'button', class: 'plain', onclick: goOn }, icon('on'), 'Continue'));
      }
    }
    this.#tools.replaceChildren(...tools);
  }
}

/** A part that is folded away. */
class Folded {
  #words = make('span');
  #body = make('div', { class: 'content' });
  #text = new MarkdownView(this.#body);

  /** @param {string} name */
  constructor(name) {
    this.element = make('details', { class: name, hidden: true }, make('summary', {}, this.#words), this.#body);
    this.element.addEventListener('toggle', () => this.#draw());
    this.last = { text: '', isWhole: true };
  }

  /** @param {string} text @param {string} words @param {boolean} isWhole */
  show(text, words, isWhole) {
    set(this.element, 'hidden', text ? null : '');
    this.last = { text, isWhole };
    write(this.#words, words);
    this.#draw();
  }

  #draw() {
    if (this.element.open) this.#text.show(this.last.text, this.last.isWhole);
  }
}

/** @param {string} title @param {string} text */
function callBlock(title, text) {
  const pre = make('pre', { tabindex: 0, dir: 'auto' }, text);
  return make('details', { class: 'call', open: text.length < 400 }, make('summary', { dir: 'auto' }, title), pre);
}

/** JSON as people read it; anything else as it is. @param {string} text */
function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** @param {string} reasoning @param {Figures | undefined} figures @param {boolean} isUnderWay */
function lengthOf(reasoning, figures, isUnderWay) {
  const words = reasoning.split(/\s+/).filter(Boolean).length;
  const length = figures?.reasoning ? many(figures.reasoning, 'token') : many(words, 'word');
  return isUnderWay ? `Reasoning … ${length}` : `Reasoning, ${length}`;
}

/** @param {Figures | undefined} figures */
function figuresOf(figures) {
  if (!figures) return '';
  const { tokens, first, seconds, prompt, cached, about } = figures;
  const found = [`${about ? '≈ ' : ''}${many(tokens, 'token')}`];
  if (seconds > SHORTEST && tokens > 1) found.push(`${((tokens - 1) / seconds).toFixed(1)} tokens/s`);
  found.push(`first after ${first < 10 ? first.toFixed(2) : first.toFixed(0)} s`);
  if (prompt) found.push(`${counted(cached)} of ${counted(prompt)} reused`);
  return found.join(' · ');
}
