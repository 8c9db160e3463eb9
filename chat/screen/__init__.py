"""What the user sees: answers as they come, Markdown, figures; and the clipboard."""
