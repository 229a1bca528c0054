"""What writes the generated parts of docs/: `api` the page of the API, `gallery` the pictures."""
