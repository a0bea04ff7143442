// Filter and order of capabilities.html. Without it the page is complete: the form stays hidden.
(function () {
  "use strict";
  var form = document.getElementById("chooser");
  var shown = document.getElementById("shown");
  var tables = Array.from(document.querySelectorAll("table.matrix"));

  function rowsOf(table) { return Array.from(table.tBodies[0].rows); }

  // Heads of columns in the order of a row's cells: the methods', then one per probe.
  function headsOf(table) { return Array.from(table.querySelectorAll("th[data-probe]")); }

  function filter() {
    var wanted = Array.from(form.querySelectorAll("input:checked"), function (box) { return box.value; });
    var rows = 0, left = 0;
    tables.forEach(function (table) {
      var probes = headsOf(table).map(function (head) { return head.dataset.probe; });
      var columns = wanted.map(function (probe) { return probes.indexOf(probe); });
      rowsOf(table).forEach(function (row) {
        row.hidden = !columns.every(function (i) { return i > 0 && row.cells[i].classList.contains("yes"); });
        rows += 1;
        left += row.hidden ? 0 : 1;
      });
    });
    shown.textContent = left + " of " + rows;
  }

  // What a cell is ordered by: yes before no. A word is NaN, and stays last in either direction.
  function value(cell) {
    if (cell.classList.contains("yes")) { return 0; }
    if (cell.classList.contains("no")) { return 1; }
    return parseFloat(cell.dataset.value);
  }

  function sort(table, head) {
    var column = headsOf(table).indexOf(head);
    var descending = head.getAttribute("aria-sort") === "ascending";
    headsOf(table).forEach(function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    rowsOf(table).sort(function (a, b) {
      var x = value(a.cells[column]), y = value(b.cells[column]);
      if (isNaN(x) || isNaN(y)) { return isNaN(x) - isNaN(y); }
      return descending ? y - x : x - y;
    }).forEach(function (row) { table.tBodies[0].append(row); });
  }

  tables.forEach(function (table) {
    headsOf(table).forEach(function (head) {
      var button = document.createElement("button");
      button.append.apply(button, Array.from(head.childNodes));
      button.addEventListener("click", function () { sort(table, head); });
      head.append(button);
    });
  });
  form.hidden = false;
  form.addEventListener("change", filter);
  form.addEventListener("reset", function () { setTimeout(filter); }); // after the boxes are empty
  window.addEventListener("pageshow", filter); // a browser that goes back fills them again
})();
