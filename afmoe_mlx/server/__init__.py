"""HTTP in front of the batch engine, in the words of OpenAI's and Anthropic's interfaces."""
