"""What a prompt holds beside words: chat templates, image placeholders, pictures for them."""
