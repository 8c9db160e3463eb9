// Before the page is drawn: the chosen colours, if not the system's.
document.documentElement.dataset.theme = localStorage.getItem('theme') ?? '';
