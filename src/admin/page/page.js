
// Puts what /-/status says into the page, once a second. All texts, bars, curves and rows are made by the server, the
// same for the first look and for every later one; here they are only put in their places.
(() => {
  "use strict";
  const all = (name) => [...document.querySelectorAll(`[data-${name}]`)];
  const slots = { text: all("text"), bar: all("bar"), curve: all("curve"), state: all("bind-state"), rows: all("rows") };
  const lost = document.querySelector(".lost");
  let heard = new Date();

  const row = (cells, heads) => {
    const line = document.createElement("tr");
    cells.forEach((text, index) => {
      const cell = line.appendChild(document.createElement(index === 0 ? "th" : "td"));
      if (index === 0) cell.scope = "row";
      cell.className = heads[index].className;
      cell.dataset.label = heads[index].textContent;
      cell.textContent = text;
    });
    return line;
  };

  const cards = document.querySelectorAll(".card");
  const known = [...cards].map((card) => card.dataset.bindState).join();

  const show = (page) => {
    // A reload has brought or taken destinations: their cards are made by the server.
    if (page.cards.join() !== known) return location.reload();
    document.title = page.title;
    for (const slot of slots.text) {
      const text = page.texts[slot.dataset.text] ?? "";
      // Unchanged text is left alone, so that screen readers speak of changes only.
      if (slot.textContent !== text) slot.textContent = text;
    }
    for (const slot of slots.bar) slot.setAttribute("width", page.bars[slot.dataset.bar]);
    for (const slot of slots.curve) slot.setAttribute("d", page.curves[slot.dataset.curve]);
    for (const slot of slots.state) slot.dataset.state = page.states[slot.dataset.bindState];
    for (const slot of slots.rows) {
      const heads = slot.closest("table").tHead.rows[0].cells;
      slot.replaceChildren(...page.rows[slot.dataset.rows].map((cells) => row(cells, heads)));
    }
  };

  const poll = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch("-/status", { cache: "no-store", signal: AbortSignal.timeout(5000) });
        if (!answer.ok) throw new Error(answer.statusText);
        show((await answer.json()).page);
        heard = new Date();
        lost.hidden = true;
      } catch {
        const text = `pyrotee does not answer. The numbers below are from ${heard.toLocaleTimeString()}.`;
        if (lost.textContent !== text) lost.textContent = text;
        lost.hidden = false;
      }
    }
    setTimeout(poll, 1000);
  };
  setTimeout(poll, 1000);
})();
