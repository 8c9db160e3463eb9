/** What is asked for or told in a window of its own: the key, and which keys there are. */

import { make } from './dom.js';

const KEYS = [
  ['Enter', 'Send'],
  ['Shift+Enter', 'A new line'],
  ['Esc', 'Stop the answer; leave the message'],
  ['↑ in an empty message', 'Edit the last one'],
  ['Ctrl+Enter', 'Send what was edited'],
  ['Alt+↑, Alt+↓', 'The message before, after'],
  ['/', 'To the message'],
  ['Alt+N', 'A new conversation'],
  ['Alt+K', 'Search conversations'],
  ['↑, ↓ in the list', 'Another conversation'],
  ['F2, Delete in the list', 'Rename, delete'],
  ['Alt+R', 'Ask again'],
  ['Alt+C', 'Continue an answer that was cut off'],
  ['Alt+S', 'Settings'],
  ['?', 'This list'],
];

/**
 * Ask for the server's API key.
 * @param {boolean} isWrong Whether one was given already.
 * @returns {Promise<string | null>}
 */
export function askKey(isWrong) {
  const user = make('input', { type: 'text', autocomplete: 'username', hidden: true }); // for who keeps passwords
  user.value = 'afmoe-mlx';
  const pattern = '\\s*[!-~]+\\s*'; // what a header can hold
  const about = { type: 'password', id: 'key', autocomplete: 'current-password', required: true, pattern };
  const input = make('input', { ...about, title: 'ASCII letters, digits and signs' });
  const dialog = make('dialog', { class: 'small', 'aria-labelledby': 'key-title' });
  const words = isWrong ? 'The server knows no such key.' : 'This server asks for one.';
  const form = make(
    'form',
    { method: 'dialog' },
    make('h2', { id: 'key-title' }, 'API key'),
    make('label', { for: 'key' }, `${words} It is kept in this tab, until that is closed.`),
    user,
    input,
    make(
      'div',
      { class: 'bar' },
      make('button', { type: 'button', class: 'plain', onclick: () => dialog.close() }, 'Cancel'),
      make('button', { type: 'submit', class: 'main' }, 'Use it'),
    ),
  );
  dialog.append(form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    /** @type {string | null} */ let key = null;
    form.addEventListener('submit', () => {
      key = input.value.trim() || null;
    });
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve(key);
    });
  });
}

/** Tell which keys do what. */
export function tellKeys() {
  const rows = KEYS.map(([key, does]) =>
    make('tr', {}, make('th', { scope: 'row' }, make('kbd', {}, key)), make('td', {}, does)),
  );
  const dialog = make(
    'dialog',
    { 'aria-labelledby': 'keys-title' },
    make('h2', { id: 'keys-title' }, 'Keys'),
    make('table', { class: 'keys' }, make('tbody', {}, ...rows)),
    make(
      'div',
      { class: 'bar' },
      make('button', { type: 'button', class: 'main', onclick: () => dialog.close() }, 'Close'),
    ),
  );
  dialog.addEventListener('close', () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
