/** The settings of a conversation, beside what the server does where nothing is set. */

import { make } from './dom.js';

/** @typedef {import('./types.js').Settings} Settings */
/** @typedef {import('./types.js').Model} Model */

/**
 * A number that can be set.
 * @typedef {object} NumberField
 * @property {keyof Settings} name
 * @property {string} label
 * @property {string} meaning
 * @property {number} min
 * @property {number} [max]
 * @property {number | 'any'} step
 */

/** @type {NumberField[]} */
const NUMBERS = [
  { name: 'temperature', label: 'Temperature', meaning: '0: always the likeliest token', min: 0, max: 2, step: 'any' },
  {
    name: 'top_p',
    label: 'Top-p',
    meaning: 'the likeliest tokens that make up this share',
    min: 0,
    max: 1,
    step: 'any',
  },
  { name: 'top_k', label: 'Top-k', meaning: 'so many of the likeliest; 0: all', min: 0, step: 1 },
  { name: 'min_p', label: 'Min-p', meaning: 'no token below this share of the likeliest', min: 0, max: 1, step: 'any' },
  {
    name: 'repetition_penalty',
    label: 'Repetition penalty',
    meaning: 'on all tokens; 1: none',
    min: 0.01,
    step: 'any',
  },
  {
    name: 'presence_penalty',
    label: 'Presence penalty',
    meaning: 'on what the answer has',
    min: -2,
    max: 2,
    step: 'any',
  },
  {
    name: 'frequency_penalty',
    label: 'Frequency penalty',
    meaning: 'the more, the more often',
    min: -2,
    max: 2,
    step: 'any',
  },
  { name: 'seed', label: 'Seed', meaning: 'the same draws the same answer', min: 0, step: 1 },
  { name: 'max_tokens', label: 'Tokens', meaning: 'of an answer, at most', min: 1, step: 1 },
];
const EFFORTS = [
  ['', 'The model’s own'],
  ['none', 'None'],
  ['low', 'Low'],
  ['medium', 'Medium'],
  ['high', 'High'],
];
const THEMES = [
  ['', 'The system’s'],
  ['light', 'Light'],
  ['dark', 'Dark'],
];

/**
 * Ask for settings.
 * @param {Settings} settings
 * @param {Model | null} model
 * @param {(settings: Settings, isForNew: boolean) => void} save isForNew: for new conversations, too.
 */
export function askSettings(settings, model, save) {
  const dialog = make('dialog', { id: 'settings', 'aria-labelledby': 'settings-title' });
  const form = make('form', { method: 'dialog', novalidate: true });
  const defaults = model?.defaults ?? {};
  const system = make('textarea', { id: 'system', name: 'system', rows: 4, dir: 'auto', placeholder: 'None' });
  const schema = make('textarea', { id: 'schema', name: 'schema', rows: 4, spellcheck: 'false', class: 'mono' });
  schema.placeholder = '{"type": "object", "properties": {…}}';
  system.value = settings.system ?? '';
  schema.value = settings.schema ?? '';
  const numbers = NUMBERS.map((field) => numberField(field, settings[field.name], defaults[field.name]));
  const effort = choice('reasoning_effort', EFFORTS, settings.reasoning_effort ?? '');
  const theme = choice('theme', THEMES, localStorage.getItem('theme') ?? '');
  const isForNew = make('input', { type: 'checkbox', id: 'for-new' });
  const trouble = make('p', { class: 'trouble', role: 'alert', hidden: true });
  theme.addEventListener('change', () => {
    localStorage.setItem('theme', theme.value);
    document.documentElement.dataset.theme = theme.value;
  });
  const reset = () => {
    for (const input of [system, schema, effort, ...numbers.map(({ input }) => input)]) input.value = '';
  };
  form.append(
    make('h2', { id: 'settings-title' }, 'Settings of this conversation'),
    labelled('System prompt', system),
    make(
      'fieldset',
      { class: 'grid' },
      make('legend', { class: 'hidden' }, 'Sampling'),
      ...numbers.map(({ row }) => row),
    ),
    make('div', { class: 'grid' }, labelled('Reasoning', effort), labelled('Colours (of this browser)', theme)),
    labelled('Answers as JSON of this schema', schema),
    trouble,
    make('label', { class: 'check', for: 'for-new' }, isForNew, 'Use these for new conversations, too'),
    make(
      'div',
      { class: 'bar' },
      make('button', { type: 'button', class: 'plain', onclick: reset }, 'Reset'),
      make('span', { class: 'space' }),
      make('button', { type: 'button', class: 'plain', onclick: () => dialog.close() }, 'Cancel'),
      make('button', { type: 'submit', class: 'main' }, 'Save'),
    ),
  );
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    try {
      save(read(system, schema, effort, numbers), isForNew.checked);
      dialog.close();
    } catch (error) {
      trouble.textContent = error instanceof Error ? error.message : String(error);
      trouble.hidden = false;
    }
  });
  dialog.addEventListener('close', () => dialog.remove());
  dialog.append(form);
  document.body.append(dialog);
  dialog.showModal();
}

/**
 * What was set; an Error says what makes no sense.
 * @param {HTMLTextAreaElement} system
 * @param {HTMLTextAreaElement} schema
 * @param {HTMLSelectElement} effort
 * @param {{field: NumberField, input: HTMLInputElement}[]} numbers
 * @returns {Settings}
 */
function read(system, schema, effort, numbers) {
  /** @type {Record<string, any>} */ const found = {};
  for (const { field, input } of numbers) {
    const { label, min, max, step } = field;
    if (!input.checkValidity()) {
      input.focus();
      const range = max === undefined ? `at least ${min}` : `from ${min} to ${max}`;
      throw new Error(`${label}: expected a ${step === 1 ? 'whole ' : ''}number, ${range}`);
    }
    if (input.value !== '') found[field.name] = Number(input.value);
  }
  if (system.value.trim()) found.system = system.value.trim();
  if (effort.value) found.reasoning_effort = effort.value;
  if (schema.value.trim()) {
    found.schema = schema.value.trim();
    checkSchema(found.schema);
  }
  return found;
}

/** @param {string} text */
function checkSchema(text) {
  let value = null;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`The schema is no JSON: ${error instanceof Error ? error.message : error}`);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new Error('The schema is no object: expected such as {"type": "object"}');
  }
}

/** @param {NumberField} field @param {any} value @param {number | undefined} standard */
function numberField(field, value, standard) {
  const { name, label, meaning, min, max, step } = field;
  const id = `set-${name}`;
  const input = make('input', {
    id,
    name,
    type: 'number',
    min,
    max,
    step,
    inputmode: 'decimal',
    'aria-describedby': `${id}-is`,
  });
  input.value = value ?? '';
  input.placeholder = standard === undefined ? (name === 'seed' ? 'Another each time' : '') : `${standard}`;
  const row = make(
    'div',
    { class: 'labelled' },
    make('label', { for: id }, label),
    input,
    make('span', { id: `${id}-is`, class: 'quiet' }, meaning),
  );
  return { field, input, row };
}

/** @param {string} id @param {string[][]} options @param {string} value */
function choice(id, options, value) {
  const select = make('select', { id });
  select.append(...options.map(([key, words]) => make('option', { value: key }, words)));
  select.value = value;
  return select;
}

/** @param {string} label @param {HTMLElement} element */
const labelled = (label, element) =>
  make('div', { class: 'labelled' }, make('label', { for: element.id }, label), element);
