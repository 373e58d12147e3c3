() => {
    // Escape stops the answer, wherever the focus is
    document.addEventListener("keydown", (event) => {
        const stop = document.querySelector("#message .stop-button");
        if (event.key === "Escape" && stop) stop.click();
    });
    // Gradio calls the examples a list, but they are buttons
    const mend = () => document.querySelectorAll("#chats [role=list]").forEach((list) => (list.role = "group"));
    new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
    mend();
}
