"use strict";
const tools = document.querySelector("#filter"), search = tools.querySelector("input"), chosen = tools.querySelector("select");
const examples = [...document.querySelectorAll(".example")].map(one => [one, one.textContent.toLowerCase(), one.dataset.slices.split("\n")]);
function apply() {
  const words = search.value.toLowerCase().trim(), slice = chosen.value;
  let number = 0;
  for (const [one, text, slices] of examples) {
    one.hidden = !text.includes(words) || (slice !== "" && !slices.includes(slice));
    number += !one.hidden;
  }
  tools.querySelector("output").textContent = number + " of " + examples.length + " shown";
}
search.addEventListener("input", apply);
chosen.addEventListener("input", apply);
tools.hidden = false;
apply();
