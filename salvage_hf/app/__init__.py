"""The app: a page on which one drops a picture, looks at its maps and hides patches. Needs gradio (the extra "app")."""
