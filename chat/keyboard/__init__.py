"""What the user types: a line editor or plain lines, history, completion, the signals that end a chat."""
