"""What is kept of conversations: sessions, exports, and the text files that are attached to messages."""
