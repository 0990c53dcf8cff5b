"use strict";

function element(name, text, parent) {
  const made = document.createElement(name);
  made.textContent = text;
  parent.append(made);
  return made;
}

fetch("/openapi.json").then(answer => answer.json()).then(({ paths }) => {
  const list = document.getElementById("list");
  list.textContent = "";
  for (const [path, operations] of Object.entries(paths)) {
    for (const [method, told] of Object.entries(operations)) {
      const section = element("section", "", list);
      element("h2", `${method.toUpperCase()} ${path}`, section);
      element("p", told.description, section);
      for (const [media, { schema }] of Object.entries(told.requestBody?.content ?? {})) {
        element("p", media, section);
        element("pre", JSON.stringify(schema, null, 1), section);
      }
    }
  }
});
