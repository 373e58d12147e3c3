"""The viewer of evaluation results in the browser, served or exported as a static site."""
