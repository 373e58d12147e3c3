import { useEffect, useRef } from "preact/hooks";
import { formatDate } from "../format";
import { SHORTCUTS } from "../keyboard";

export function Help({ open, onClose, created }: { open: boolean; onClose: () => void; created: string }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (open) dialog.current?.showModal();
  }, [open]);
  return (
    <dialog
      ref={dialog}
      aria-labelledby="help-title"
      onClose={onClose}
      onClick={(event) => event.target === dialog.current && dialog.current?.close()}
    >
      <div class="help">
        <h2 id="help-title">Short cuts</h2>
        <dl>
          {SHORTCUTS.map(([keys, what]) => (
            <div>
              <dt>
                {keys.map((key) => (
                  <kbd>{key}</kbd>
                ))}
              </dt>
              <dd>{what}</dd>
            </div>
          ))}
        </dl>
        <h2>Views</h2>
        <p>
          Right and Wrong show the samples with such an answer, Unreadable those whose clip could not be read: in the
          chosen run or, with “any run”, in at least one. Different shows those on which the runs disagree, most first.
          Each address is a link to what you see.
        </p>
        <p class="muted">Made on {formatDate(created)}.</p>
        <button onClick={() => dialog.current?.close()}>Close</button>
      </div>
    </dialog>
  );
}
