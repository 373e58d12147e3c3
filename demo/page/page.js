() => {
    // Escape stops the answer, wherever the focus is
    document.addEventListener("keydown", (event) => {
        const stop = document.querySelector("#message .stop-button");
        if (event.key === "Escape" && stop) stop.click();
    });
    const mend = () => {
        // Gradio calls the examples a list, but they are buttons
        document.querySelectorAll("#chats [role=list]").forEach((list) => (list.role = "group"));
        // What the file dialog offers. With `file_types`, Gradio would ignore other files without a word
        document.querySelectorAll("#message input[type=file]").forEach((input) => {
            input.accept = "video/*,image/*";
            input.onclick = () => (input.value = ""); // so that the same file can be chosen again
        });
    };
    new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
    mend();
}
