/** An answer while it is written: asked for, saved as it comes, gone on with when the server was away. */

import { ServerError } from './api.js';
import { many } from './dom.js';
import { hasBegun, requestFor } from './thread.js';

/** @typedef {import('./types.js').Figures} Figures */
/** @typedef {import('./types.js').Message} Message */
/** @typedef {import('./types.js').Piece} Piece */
/** @typedef {import('./types.js').Progress} Progress */
/** @typedef {import('./types.js').Settings} Settings */

const SAVED_EVERY = 400; // milliseconds
const LONGEST_WAIT = 30; // seconds before it is asked for again, where the server does not say when

/**
 * What an answer needs of the rest.
 * @typedef {object} Around
 * @property {import('./api.js').Server} server
 * @property {(message: Message) => Promise<void>} save
 * @property {(message: Message) => void} changed
 * @property {(message: Message, progress: Progress | null, words?: string) => void} progress
 * @property {(words: string) => void} say To who cannot see the page.
 */

export class Answering {
  #controller = new AbortController();
  #timer = 0;
  #tries = 0; // of which nothing came
  #done = Promise.resolve();

  /**
   * @param {Message} message With what it has so far.
   * @param {Message[]} before
   * @param {Settings} settings
   * @param {Around} around
   */
  constructor(message, before, settings, around) {
    this.message = message;
    this.before = before;
    this.settings = settings;
    this.around = around;
  }

  /** End it, and keep what there is; gives when it has. */
  async stop() {
    this.#controller.abort();
    await this.#done;
  }

  /** Until it is over, whatever happens. */
  write() {
    this.#done = this.#write();
    return this.#done;
  }

  async #write() {
    const { message, around } = this;
    Object.assign(message, { state: 'writing', trouble: undefined });
    await this.save();
    around.changed(message);
    around.progress(message, { total: 0, cache: 0, processed: 0 }, 'Waiting');
    try {
      while (!(await this.#attempt()));
    } catch (error) {
      if (this.#controller.signal.aborted) message.state = 'stopped';
      else this.#fail(error);
    }
    await this.save();
    around.changed(message);
    around.say(this.#ending());
  }

  /** Whether it has come to its end; if not, the server is back. */
  async #attempt() {
    const { signal } = this.#controller;
    try {
      await this.#stream(signal);
      return true;
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof ServerError && error.isPassing)) throw error;
      await this.save();
      const words = `${error.status ? error.message : 'The server is away'}: waiting`;
      this.around.say(words);
      this.around.progress(this.message, { total: 0, cache: 0, processed: 0 }, words);
      await this.around.server.back(signal, error.retryAfter ?? Math.min(this.#tries, LONGEST_WAIT));
      this.#tries += 1;
      return false;
    }
  }

  /** @param {AbortSignal} signal */
  async #stream(signal) {
    const { message, around } = this;
    if (!hasBegun(message) || this.settings.schema) this.#empty(); // a schema holds an answer from its beginning
    const path = hasBegun(message) ? [...this.before, message] : this.before;
    const clock = new Clock(message.figures);
    for await (const piece of around.server.answer(requestFor(path, this.settings), signal)) {
      if (piece.progress) {
        clock.read(piece.progress);
        around.progress(message, piece.progress);
      }
      if (piece.content || piece.reasoning || piece.call) {
        take(message, piece);
        clock.tick();
        this.#tries = 0;
      }
      if (piece.usage || clock.ticks) message.figures = clock.figures(piece.usage);
      if (piece.finish) message.state = piece.finish === 'length' ? 'full' : 'done';
      if (piece.violation) message.trouble = `It is not what its schema asks for: ${piece.violation}.`;
      if (!piece.progress) around.changed(message);
      if (clock.ticks === 1) around.say('The answer begins.');
      this.#timer ||= setTimeout(() => this.save().catch(() => {}), SAVED_EVERY); // the last time tells
    }
  }

  #empty() {
    Object.assign(this.message, { content: '', reasoning: undefined, calls: undefined, figures: undefined });
  }

  /** @param {unknown} error */
  #fail(error) {
    this.message.state = 'failed';
    this.message.trouble = error instanceof Error ? error.message : String(error);
  }

  /** Keep what there is by now. */
  save() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    return this.around.save(this.message);
  }

  #ending() {
    const { state, figures, trouble } = this.message;
    if (state === 'failed') return `No answer: ${trouble}`;
    const tokens = figures ? `, ${many(figures.tokens, 'token')}` : '';
    return `${state === 'done' ? 'Answer complete' : state === 'full' ? 'Answer at its limit' : 'Stopped'}${tokens}`;
  }
}

/** @param {Message} message @param {Piece} piece */
function take(message, { content, reasoning, call }) {
  if (content) message.content += content;
  if (reasoning) message.reasoning = (message.reasoning ?? '') + reasoning;
  if (!call) return;
  message.calls ??= [];
  message.calls[call.index] ??= { id: call.id ?? '', name: call.name ?? '', arguments: '' };
  message.calls[call.index].arguments += call.arguments ?? '';
}

/** When the tokens of an answer came, and how many; where it goes on with what there was, that is added. */
class Clock {
  #began = performance.now();
  #first = 0;
  #last = 0;
  /** @type {Progress | undefined} */ #progress;
  ticks = 0;

  /** @param {Figures} [before] */
  constructor(before) {
    this.before = before;
  }

  /** @param {Progress} progress */
  read(progress) {
    this.#progress = progress;
  }

  tick() {
    this.#last = performance.now();
    this.#first ||= this.#last;
    this.ticks += 1;
  }

  /** @param {Piece['usage']} usage The server's figures, at the end. @returns {Figures} */
  figures(usage) {
    const { before } = this;
    const asked = usage?.prompt ?? this.#progress?.total ?? 0;
    const prompt = before?.prompt || asked;
    const total = asked + (usage?.tokens ?? this.ticks); // the prompt has what there was before
    return {
      prompt,
      cached: before?.prompt ? before.cached : (usage?.cached ?? this.#progress?.cache ?? 0),
      tokens: asked ? total - prompt : this.ticks,
      total,
      reasoning: (usage?.reasoning ?? 0) + (before?.reasoning ?? 0),
      first: before?.first ?? usage?.first ?? (this.#first - this.#began) / 1000,
      seconds: (usage?.seconds ?? (this.#last - this.#first) / 1000) + (before?.seconds ?? 0),
      about: !usage || undefined,
    };
  }
}
