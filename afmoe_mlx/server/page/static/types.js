/**
 * What is kept of conversations, and what the server tells.
 *
 * @typedef {object} Settings What the server's own defaults stand for where it is missing.
 * @property {string} [system] The system prompt.
 * @property {number} [temperature]
 * @property {number} [top_p]
 * @property {number} [top_k]
 * @property {number} [min_p]
 * @property {number} [repetition_penalty]
 * @property {number} [presence_penalty]
 * @property {number} [frequency_penalty]
 * @property {number} [seed]
 * @property {number} [max_tokens]
 * @property {string} [reasoning_effort]
 * @property {string} [schema] A JSON schema, as it was typed.
 *
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {number} created Milliseconds since 1970.
 * @property {number} changed
 * @property {string | null} leaf The last message of the branch that is shown.
 * @property {Settings} settings
 *
 * @typedef {object} TextFile
 * @property {string} name
 * @property {string} text
 *
 * @typedef {object} Call A call of a tool.
 * @property {string} id
 * @property {string} name
 * @property {string} arguments JSON, or what the model wrote in its place.
 *
 * @typedef {object} Figures Of an answer; seconds and tokens.
 * @property {number} prompt Tokens of the prompt.
 * @property {number} cached Of these, those that were known and not run.
 * @property {number} tokens Of the answer.
 * @property {number} total Of both: what of the context is used.
 * @property {number} reasoning Of the answer's, those of the reasoning.
 * @property {number} first Until the first of them.
 * @property {number} seconds From the first of them to the last.
 * @property {boolean} [about] Whether the tokens are only a guess.
 *
 * @typedef {'writing' | 'done' | 'stopped' | 'cut' | 'full' | 'failed' | 'edited'} State Of an answer: being written, whole,
 * stopped by the user, broken off, at its limit, ended by an error, or what the user made of it.
 *
 * @typedef {object} Message
 * @property {string} id
 * @property {string} conversation
 * @property {string | null} parent The message before; messages with one parent are versions of each other.
 * @property {'user' | 'assistant' | 'tool'} role
 * @property {string} content
 * @property {number} created Milliseconds since 1970.
 * @property {TextFile[]} [files] Attached to it.
 * @property {string} [reasoning]
 * @property {Call[]} [calls]
 * @property {string} [call] Of a result: the id of its call.
 * @property {string} [name] Of a result: the tool.
 * @property {State} [state] Of an answer.
 * @property {string} [trouble] Why it is not whole.
 * @property {Figures} [figures]
 *
 * @typedef {object} Model What is served.
 * @property {string} name
 * @property {number} context Tokens of a prompt and its answer, at most.
 * @property {Record<string, number>} defaults
 *
 * @typedef {object} Progress How far a prompt is read, in tokens.
 * @property {number} total
 * @property {number} cache Of these, those that were known.
 * @property {number} processed
 *
 * @typedef {object} Piece What comes next of an answer.
 * @property {Progress} [progress]
 * @property {string} [content]
 * @property {string} [reasoning]
 * @property {{index: number, id?: string, name?: string, arguments?: string}} [call]
 * @property {string} [finish] "stop", "length" or "tool_calls".
 * @property {string} [violation] What it falls short of in its schema.
 * @property {Usage} [usage]
 *
 * @typedef {object} Usage An answer's figures, as `Figures`, by the server.
 * @property {number} prompt
 * @property {number} cached
 * @property {number} tokens
 * @property {number} reasoning
 * @property {number} [first]
 * @property {number} [seconds]
 */

export {};
