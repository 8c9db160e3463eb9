"""Messages and answers, apart from any one interface.

prompts: messages become a prompt's tokens; reasoning: what a model wrote becomes reasoning and answer, and
goes back to it closed.
"""
