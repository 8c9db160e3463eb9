"""Messages and answers as the chat, the commands and a server share them.

prompts: messages become a prompt's tokens; reasoning: what a model wrote becomes reasoning and answer.
"""
