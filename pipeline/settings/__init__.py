"""The options of `plan` and `build` by section: name, default with its reason, help, once each."""
