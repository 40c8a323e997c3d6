// Charts and sorting; without this script all numbers are on the page.
const charts = Object.assign({}, ...[...document.querySelectorAll("script.specs")].map((one) => JSON.parse(one.textContent)));
for (const [name, spec] of Object.entries(charts)) {
  const place = document.getElementById("chart-" + name);
  vegaEmbed(place, spec, { renderer: "svg", actions: false, tooltip: { theme: "page" } })
    .then(() => {
      place.removeAttribute("aria-busy");
      // what a chart shows is said by the label of its place, and by the numbers beside it: to Vega it is a document of its parts
      place.setAttribute("role", "img");
      place.removeAttribute("aria-roledescription");
      place.querySelector("svg").setAttribute("aria-hidden", "true");
    })
    .catch((error) => { place.textContent = "This chart could not be drawn: " + error.message; });
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const order = (a, b) => {
        const [one, other] = [key(a), key(b)];
        // what has no value stands last either way
        if (one === "" || other === "") return (one === "") - (other === "");
        const numbers = [Number(one), Number(other)];
        const rank = numbers.some(Number.isNaN) ? one.localeCompare(other) : numbers[0] - numbers[1];
        return rising ? rank : -rank;
      };
      const body = table.tBodies[0];
      [...body.rows].sort(order).forEach((row) => body.append(row));
    });
  });
}
